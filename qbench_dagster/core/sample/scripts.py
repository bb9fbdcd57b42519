"""Invented sentences in scripts other than Latin: Arabic, Hebrew, Japanese. Only words, with slots.

English is in `vocabulary.py` and `areas_*.py`.
"""

from __future__ import annotations

from typing import Final

# The slots are the numeric ones only, so that no English word gets in between. Arabic and Hebrew
# alternate: `planting.py` takes every second action, by the number of the case.
RTL_TITLES: Final = (
    "لا يمكن للمستخدم تسجيل الدخول بكلمة مرور خاطئة {n:1-999}",
    "המשתמש אינו יכול להתחבר עם סיסמה שגויה {n:1-999}",
    "شراء {n:2-8} تذاكر للمباراة القادمة",
    "רכישת {n:2-8} כרטיסים למשחק הבא",
    "يتم استرداد قيمة الطلب {n:1000-9999}",
    "החזר כספי עבור הזמנה {n:1000-9999}",
)
RTL_ACTIONS: Final = (
    "افتح التطبيق واختر المقعد رقم {n:1-300}",
    "פתח את האפליקציה ובחר מושב {n:1-300}",
    "أدخل كلمة مرور خاطئة ثم اضغط على زر الدخول",
    "הזן סיסמה שגויה ולחץ על כפתור הכניסה",
    "تظهر رسالة خطأ واضحة باللغة العربية (iOS {n:15-18})",
    "מוצגת הודעת שגיאה ברורה בעברית (Android {n:9-14})",
)

CJK_TITLES: Final = (
    "間違ったパスワードではログインできないことを確認する{n:1-999}",
    "試合{n:1-380}の座席を選択して購入手続きに進む",
    "払い戻し申請後{n:2-30}日以内に返金されること",
    "ライブ配信中に回線が切断された場合の再生再開{n:1-99}",
)
CJK_ACTIONS: Final = (
    "アプリを起動し、チケット画面を開く。",
    "座席表から{n:1-40}列{n:1-32}番の席を選択する。",
    "誤ったパスワードを入力してログインボタンを押す。",
    "エラーメッセージが{n:2-9}秒以内に表示されることを確認する。",
    "機内モードに切り替えて、画面が固まらないことを確認する。",
    "ログアウトして最初の画面に戻る。",
)
