"""The estimate of tokens: what it may never do, and how near it comes to what tiktoken 0.14.0 counts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qbench_dagster.core.tokens import estimate

# Texts with their true tokens by cl100k_base.
ENGLISH = [
    ("x", 1),
    ("Login", 1),
    ('Open the page and click "Save".', 8),
    ("Verify that the user cannot log in with a wrong password", 11),
    ("1. Go to Settings > Users\n2. Select the first user\n3. Press Delete", 19),
    ("The user is logged out after 15 minutes of inactivity, and a message is shown.", 19),
    ("GIVEN a registered user\nWHEN the user submits the form\nTHEN a confirmation e-mail is sent", 21),
    ("Check that the dashboard widget renders correctly after a resize", 10),
    ("TC-1234: validateEmailAddress() returns false for user@example", 13),
    ("Set nsslapd-sizelimit to 5000", 13),
    ("HTTP 404 Not Found", 5),
    ("SRv6 BGP EVPN VXLAN VTEP failover", 14),
]
TECHNICAL = [
    ("https://www.example.com/api/v2/items?id=1042&sort=desc#top", 19),
    ("SELECT id, title FROM cases WHERE suite_id = 12 ORDER BY id;", 16),
    ("for (int i = 0; i < items.size(); i++) { total += items[i].price; }", 24),
    ('{"userName": "bob", "isActive": true, "tags": ["a", "b"]}', 20),
    ("kubectl get pods -n kube-system -o wide | grep -v Running", 15),
    ("2024-03-12T10:22:33.123Z", 15),
    ("550e8400-e29b-41d4-a716-446655440000", 18),
    ("4111 1111 1111 1111", 11),
    ("31415926535897932384626433832795028841971693993751", 17),
    ("192.168.10.24 / fe80::1ff:fe23:4567:890a", 22),
    ("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg==", 53),
    ("| Name | Value |\n|------|-------|\n| size | 12 px |", 17),
    ("----------------------------------------", 2),
    ("                                        x", 2),
    ("\n\n\n\n", 1),
    ("\t\t\tindented", 4),
]
OTHERS = [
    ("Klicken Sie auf die Schaltfläche „Speichern“ und prüfen Sie, ob die Änderungen übernommen wurden.", 29),
    ("Cliquez sur le bouton « Enregistrer » puis vérifiez que les modifications sont bien prises en compte.", 26),
    ("Haga clic en el botón Guardar y compruebe que los cambios se han guardado correctamente en la aplicación.", 25),
    ("Kliknij przycisk Zapisz i sprawdź, czy zmiany zostały poprawnie zapisane w systemie.", 31),
    ("Napsauta Tallenna-painiketta ja varmista, että muutokset on tallennettu oikein järjestelmään.", 34),
    ("Nhấn nút Lưu và kiểm tra xem các thay đổi đã được lưu đúng chưa.", 31),
    ("Нажмите кнопку «Сохранить» и убедитесь, что изменения сохранены в системе.", 28),
    ("Натисніть кнопку «Зберегти» та переконайтеся, що зміни збережено.", 37),
    ("Κάντε κλικ στο κουμπί Αποθήκευση και ελέγξτε τις αλλαγές.", 50),
    ("点击保存按钮，检查修改是否已经保存成功。", 13),
    ("點擊儲存按鈕，檢查修改是否已經儲存成功。", 30),
    ("保存ボタンをクリックし、変更が正しく保存されたことを確認する。", 30),
    ("저장 버튼을 클릭하고 변경 사항이 올바르게 저장되었는지 확인합니다.", 31),
    ("انقر على زر الحفظ وتحقق من حفظ التغييرات بنجاح.", 32),
    ("לחץ על כפתור השמירה ובדוק שהשינויים נשמרו.", 42),
    ("คลิกปุ่มบันทึกและตรวจสอบว่าการเปลี่ยนแปลงถูกบันทึกแล้ว", 50),
    ("सहेजें बटन पर क्लिक करें और जांचें कि परिवर्तन सहेजे गए हैं।", 58),
    ("შეინახეთ ცვლილებები", 37),
    ("Tap 👍 then 🎉, expect ✅ not ❌", 14),
    ("👩\u200d💻🇩🇪🏳\ufe0f\u200d🌈", 22),
    ("price ≤ 10 € → “OK” … ±5 %", 13),
    ("<|endoftext|>", 7),
    ("┌──┬──┐", 8),
    ("１２３ＡＢＣ", 9),
]

TEXTS = st.text(st.characters(exclude_categories=()), max_size=200)


@pytest.mark.parametrize(("text", "tokens"), ENGLISH + TECHNICAL + OTHERS)
def test_a_single_text_is_near_the_truth(text: str, tokens: int) -> None:
    assert 0.75 * tokens - 3 <= estimate(text) <= 2 * tokens


@pytest.mark.parametrize(("rows", "least", "most"), [(ENGLISH, 0.96, 1.04), (TECHNICAL, 1.0, 1.06), (OTHERS, 1.0, 1.1)])
def test_many_texts_are_nearer_and_rather_over(rows: list[tuple[str, int]], least: float, most: float) -> None:
    truth = sum(tokens for _, tokens in rows)
    assert least * truth <= sum(estimate(text) for text, _ in rows) <= most * truth


def test_nothing_is_nothing() -> None:
    assert estimate("") == 0


@pytest.mark.parametrize("text", [" ", "\n", "\x00", "\u200b", "\ud800", "é", "\u0301", "́́", "<|endoftext|>"])
def test_something_is_at_least_one_token(text: str) -> None:
    assert 1 <= estimate(text) <= len(text.encode("utf-8", "surrogatepass"))


@given(TEXTS)
def test_between_one_token_and_a_token_a_byte(text: str) -> None:
    assert bool(text) <= estimate(text) <= len(text.encode("utf-8", "surrogatepass"))


@given(TEXTS, TEXTS)
def test_two_texts_together_are_about_the_two(first: str, second: str) -> None:
    # A text may change from English to another language by what is added, where a word is up to twice the tokens.
    apart = estimate(first) + estimate(second)
    assert apart / 2.2 - 6 <= estimate(first + second) <= 2.2 * apart + 6


@given(st.lists(st.sampled_from([text for text, _ in ENGLISH]), min_size=1, max_size=20))
def test_lines_of_english_add_up(texts: list[str]) -> None:
    apart = sum(map(estimate, texts))
    # Lines of nothing but abbreviations, one after the other, pass for another language: a quarter more.
    assert abs(estimate("\n".join(texts)) - apart) <= 2 * len(texts) + 0.3 * apart


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("7" * 30_000, 10_000),  # three digits a token
        (" " * 20_000, 157),
        ("\n" * 20_000, 625),
        ("\r\n" * 5_000, 1_250),
        ("\t" * 20_000, 1_250),
        ("-" * 20_000, 312),
        ("a" * 20_000, 2_500),
        ("测试" * 20_000, 20_000),
        ("0123456789abcdef" * 2_000, 10_000),
    ],
)
def test_long_runs(text: str, tokens: int) -> None:
    assert 0.95 * tokens <= estimate(text) <= 4.1 * tokens


def test_the_language_is_told_from_the_whole_text() -> None:
    german = "Wählen Sie im Menü die gewünschte Einstellung und bestätigen Sie mit der Eingabetaste. "  # 26 tokens
    assert 24 <= estimate(german) <= 34
    assert estimate("resize") < 3  # one unknown word is no other language
    mixed = estimate(german + "Verify that the user can open the page and click the button. " * 3)
    assert mixed < estimate(german) + 3 * 13  # and a text mostly in English is English


# (text, tokens by cl100k_base, what an estimate blind to the oddity stays below)
@pytest.mark.parametrize(
    ("text", "tokens", "blind"),
    [
        (
            "Überprüfen, ob für Größe älterer Geräte Änderungen möglich wären, außerdem übermäßige Anhänge löschen",
            34,
            32,
        ),
        ("mvn wrbldt strgfx xcvbnm qwrtpsd hjklzxc trghnb plmnkj", 26, 20),
        (
            "aGVsbG8gd29ybGQgdGhpcyBpcyBhIGxvbmcgdGV4dA dGhlIHF1aWNrIGJyb3duIGZveCBqdW1wcw c29tZSBtb3JlIGJhc2U2NA",
            68,
            60,
        ),
    ],
    ids=["accents", "consonants", "blob"],
)
def test_oddities_are_more_than_words(text: str, tokens: int, blind: int) -> None:
    assert blind < estimate(text) <= 1.25 * tokens
