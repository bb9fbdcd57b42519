"""Titles, steps, preconditions and comments of a case, drawn from an area's words.

What the text says belongs here; how a list of steps is written down is `layout.py`, and which case
gets which text (and so how often a text comes back) is `rows.py`.
"""

from __future__ import annotations

from typing import Final, TypeAlias

from qbench_dagster.core.sample.draw import Draw
from qbench_dagster.core.sample.vocabulary import Area, fill

Steps: TypeAlias = list[tuple[str, str]]
"""(content, expected) pairs."""

STEP_COUNTS: Final = (
    (1, 0.456), (2, 0.238), (3, 0.133), (4, 0.074), (5, 0.044), (6, 0.020), (7, 0.012), (8, 0.010),
    (10, 0.007), (12, 0.004), (17, 0.0015), (30, 0.0005),
)  # fmt: skip
"""Measured: 2.4 steps a case, 6 at p95."""

LEADS: Final = ("Verify that ", "Check that ", "Make sure that ", "Validate: ", "As {role}, ")
TAILS: Final = (
    " and the {screen} screen still shows {error}",
    " (see {ticket})",
    ", then again {cond}",
    " and nothing is written to the log of {env}",
    ", with {order}",
)


def _lower_first(text: str) -> str:
    """For use inside a sentence; "QR code" and "GET /v1" stay as they are."""
    return text if text[1:2].isupper() or text[1:2] == " " else text[:1].lower() + text[1:]


def common_title(draw: Draw, area: Area) -> str:
    """A title that many cases share: short and general."""
    if draw.chance(0.7):
        topic = draw.pick(area.topics)
        if draw.chance(0.6):
            return topic
        joiner = draw.pick((" - ", " + ", ", ", ": "))
        return f"{topic}{joiner}{fill(draw, '{short_cond}')}"
    return fill(draw, draw.pick(area.titles))


def own_title(draw: Draw, area: Area) -> str:
    """A title that hardly any other case has: it names devices, versions, places or numbers."""
    kind = draw.unit()
    if kind < 0.27:
        return f"{draw.pick(area.topics)} {draw.between(1, 40)}.{draw.between(1, 60)}.{draw.between(1, 30)}"
    if kind < 0.44:
        return fill(draw, f"{draw.pick(area.topics)} {{cond}}, {{n:2-9999}}")
    if kind < 0.52:
        topic = draw.pick(area.topics).lower().replace(" ", "_").replace("-", "_")
        return fill(draw, f"test_{topic}_{{short_cond}}_{{n:10-99999}}").replace(" ", "_")
    title = fill(draw, draw.pick(area.titles))
    if kind < 0.82:
        return f"{title} {fill(draw, '{cond}')}"
    if kind < 0.88:
        return fill(draw, f"[{{ticket}}] {title}")
    lead, tail = draw.pick(LEADS), draw.pick(TAILS)
    return fill(draw, f"{lead}{_lower_first(title)} {{cond}}, {{cond}}{tail}")[:250]


def steps(draw: Draw, area: Area) -> Steps:
    """The steps of one case. An expected result is often missing, the action now and then."""
    result: Steps = []
    for _ in range(draw.weighted(STEP_COUNTS)):
        kind = draw.unit()
        if kind < 0.20:
            content, expected = fill(draw, "{hot}"), fill(draw, "{hot_expected}")
        else:
            action, outcome = draw.pick(area.flows)
            content, expected = fill(draw, action), fill(draw, outcome)
            if kind > 0.89:
                extra = " ".join(fill(draw, "{detail}") for _ in range(draw.pick((1, 1, 2, 2, 3, 4))))
                content = f"{content}. {extra}"
            elif kind > 0.50:
                content = f"{content} {fill(draw, '{cond}')}"
            if draw.chance(0.10):
                expected = f"{expected}. {fill(draw, '{detail}')}"
        if draw.chance(0.43):
            expected = ""
        elif draw.chance(0.05):
            content = ""
        result.append((content, expected))
    if not any(content for content, _ in result):
        result[0] = (fill(draw, draw.pick(area.flows)[0]), result[0][1])
    return result


def preconditions(draw: Draw, area: Area) -> str:
    """One or two sentences, or the whole environment of the run."""
    kind = draw.unit()
    lines = [fill(draw, draw.pick(area.setups)) for _ in range(draw.pick((1, 1, 2, 3)))]
    if kind > 0.52:
        count = draw.between(2, 4) if kind < 0.86 else draw.between(6, 9)
        lines += [fill(draw, "{environment}") for _ in range(count)]
    separator = draw.weighted((("\n", 0.55), ("<br>\n", 0.2), ("\n\n", 0.1), (". ", 0.15)))
    if draw.chance(0.08):
        return "\n".join(f"<p>{line}</p>" for line in lines)
    return separator.join(lines)


def comment(draw: Draw) -> str:
    """A remark of whoever maintains the case."""
    return fill(draw, "{comment}")


def jira_keys(draw: Draw, area: Area, count: int) -> list[str]:
    """Keys such as `TIX-4711`, mostly of the area."""
    return [
        f"{area.code}-{draw.between(1, 9999)}" if draw.chance(0.7) else fill(draw, "{ticket}") for _ in range(count)
    ]


def refs(draw: Draw, area: Area) -> str:
    """What a case refers to: a page, a pull request, a ticket or several, in every spelling."""
    kind = draw.unit()
    if kind < 0.30:
        return f"https://git.example/{area.code.lower()}/app/pull/{draw.between(1, 250)}"
    if kind < 0.42:
        return f"https://git.example/{area.code.lower()}/app/issues/{draw.between(1, 250)}<br>"
    if kind < 0.72:
        slug = draw.pick(area.topics).lower().replace(" ", "-")
        chapter = f"{draw.between(1, 12)}.{draw.between(1, 9)}"
        page = f"https://wiki.example/display/{area.code}/requirements-{chapter}/{slug}"
        return f"{page}#section-{draw.between(1, 4)}"
    if kind < 0.90:
        return jira_keys(draw, area, 1)[0]
    if kind < 0.96:
        return ", ".join(jira_keys(draw, area, draw.between(2, 3)))
    return f"#{draw.between(100, 40000)}" if draw.chance(0.5) else str(draw.between(100, 40000))
