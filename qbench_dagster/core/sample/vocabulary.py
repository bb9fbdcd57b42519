"""The words every area shares, and the templates' slots: `{role}`, `{Role}` (capitalised), `{n:1-99}`.

All of it is invented for an imaginary company that sells tickets and shows matches; no sentence comes
from anybody's test plan. What a product area says of itself is in `areas_*.py`, layout in `content.py`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Final

from qbench_dagster.core.sample.draw import Draw


@dataclass(frozen=True, slots=True)
class Area:
    """A part of the product: what its test cases are called, do, expect and presuppose."""

    name: str
    code: str
    """The prefix of its Jira keys."""
    topics: tuple[str, ...]
    titles: tuple[str, ...]
    flows: tuple[tuple[str, str], ...]
    setups: tuple[str, ...]


POOLS: Final[dict[str, tuple[str, ...]]] = {
    "role": (
        "user", "guest", "admin", "season ticket holder", "editor", "support agent", "new user",
        "club member", "steward", "box office clerk", "journalist", "child account", "partner",
        "auditor", "user", "user", "admin", "signed-in fan", "trial subscriber", "league official",
    ),
    "who": (
        "mira.holt", "jonas.pike", "ada.fern", "tomas.quill", "leila.stone", "noor.banks", "ivo.marsh",
        "greta.lowe", "samir.vance", "olga.reed", "petra.nash", "hugo.dale", "yuki.brand", "femi.cole",
        "clara.wynn", "rafa.teller", "nina.frost", "omar.blythe", "ines.hale", "piotr.lang",
    ),
    "email": ("{who}@fans.example", "{who}+{n:1-400}@fans.example", "qa{n:1-999}@arena.example"),
    "device": (
        "iPhone 13", "iPhone 15 Pro", "iPhone SE", "iPad Air", "Pixel 6", "Pixel 8a", "Galaxy S21",
        "Galaxy A14",
        "Galaxy Tab S8", "a foldable phone", "a 2019 smart TV", "a set-top box", "a streaming stick",
        "MacBook Air",
        "a Windows laptop", "a kiosk", "a handheld scanner", "a Chromebook", "a projector screen",
    ),
    "os": ("iOS 15", "iOS 16", "iOS 17", "iOS 18", "Android 9", "Android 11", "Android 13", "Android 14",
           "Windows 10", "Windows 11", "macOS 13", "macOS 14", "tvOS 16", "Ubuntu 22.04"),
    "browser": ("Chrome", "Firefox", "Safari", "Edge", "Chrome {n:98-131}", "Firefox {n:91-133}",
                "Safari {n:14-18}"),
    "network": ("Wi-Fi", "4G", "5G", "a slow 3G connection", "a hotel network with a captive portal",
                "airplane mode", "a VPN", "a connection with 5 % packet loss", "IPv6 only",
                "a corporate proxy"),
    "locale": ("English", "German", "French", "Spanish", "Portuguese", "Japanese", "Arabic", "Polish",
               "Dutch", "Korean"),
    "venue": ("Northgate Arena", "Harbour Park", "Millfield", "the Copper Dome", "Linden Road",
              "Eastquay Stadium",
              "the Old Velodrome", "Highbank Court", "Saltmarsh Ground", "the Glass Hall"),
    "team": ("Harbour Gulls", "Copper Foxes", "Linden Rovers", "Northgate United", "Saltmarsh Herons",
             "Highbank Owls",
             "Millfield Athletic", "Eastquay Mariners", "Velo City", "Quarry Town", "Aldermoor Bears",
             "Fenwick Swifts"),
    "home": ("Harbour Gulls", "Copper Foxes", "Linden Rovers", "Northgate United", "Millfield Athletic"),
    "away": ("Highbank Owls", "Saltmarsh Herons", "Velo City", "Quarry Town", "Fenwick Swifts"),
    "match": ("{home} v {away}", "the {team} home match", "the cup semi-final", "the derby", "round {n:1-38}",
              "match {n:1001-9899}"),
    "player": ("A. Okafor", "L. Brandt", "M. Castellan", "J. Whitlow", "S. Ferreira", "K. Aaltonen",
               "D. Moreau",
               "T. Ishida", "B. Novak", "R. Adeyemi", "C. Lindqvist", "P. Marchetti", "number {n:1-99}"),
    "money": ("{n:2-240}.50 EUR", "{n:5-400}.00 EUR", "{n:3-180}.99 GBP", "0.00 EUR", "{n:1000-9000} JPY"),
    "order": ("order {n:10000-99999}", "order TX-{n:1000-9999}-{n:10-99}", "the last order",
              "an order of {n:2-8} tickets"),
    "seat": ("row {n:1-40} seat {n:1-32}", "block {n:101-348}", "the family stand", "box {n:1-24}",
             "the away end",
             "standing area {n:1-6}", "a restricted-view seat"),
    "time": ("{n:2-59} seconds", "{n:2-45} minutes", "{n:2-23} hours", "one day", "{n:2-30} days"),
    "error": ("a clear error message", "the message \"Something went wrong\"", "error code E-{n:100-899}",
              "an inline validation message", "a red banner", "a toast with a retry button"),
    "build": ("{n:2-14}.{n:0-19}.{n:0-9}", "{n:2-14}.{n:0-19}.{n:0-9}-rc{n:1-4}", "{n:1200-48000}"),
    "status": ("200", "201", "204", "400", "401", "403", "404", "409", "422", "429", "500", "503"),
    "state": ("empty", "expired", "blocked", "archived", "pending review", "suspended", "half filled",
              "read-only",
              "out of date", "shared with another account", "very long", "duplicated"),
    "event": ("the app is restarted", "the session has expired", "the device is rotated",
              "the connection drops",
              "a call comes in", "the clock changes to summer time", "the app comes back from background",
              "a new version is installed", "the cache is cleared", "the password was changed elsewhere",
              "the page is reloaded", "the match is postponed", "the clock passes midnight UTC",
              "the sale has opened"),
    "env": ("staging", "the test environment", "pre-production", "the load-test cluster", "a clean install"),
    "screen": ("home", "account", "settings", "match", "tickets", "search", "checkout", "help", "line-up",
               "wallet",
               "messages", "calendar", "downloads", "privacy"),
    "ticket": ("{code}-{n:11-9870}",),
    "code": ("TIX", "GTV", "PFAN", "BOX", "SHOP", "PRESS", "ROST", "IDP", "HRLD", "OPS"),
    "cond": (
        "after {event}", "on {device}", "with {os}", "in {browser}", "over {network}", "in {locale}",
        "for {role}",
        "at {venue}", "with {state} data", "during {match}", "after {time}", "on {device} with {os}",
        "in {browser} on {os}", "once {event}", "for {team}", "with {n:2-60} items",
    ),
    "short_cond": ("landscape", "portrait", "dark mode", "offline", "first run", "tablet", "guest",
                   "negative", "happy path",
                   "large font", "retry", "timeout", "upgrade", "cancel", "back button", "deep link",
                   "empty list", "cleanup"),
    "hot": (
        "Log in as admin", "Open the app", "Go to the home page", "Log in as a registered user",
        "Open Settings",
        "Log out", "Refresh the page", "Press Save", "Close and reopen the app",
        "Repeat with another browser",
        "Check the log", "Go back to the previous screen", "Wait for the page to load",
        "Accept the cookies banner",
        "Log in with valid credentials", "Clear the cache", "Switch to airplane mode",
        "Install the latest build",
    ),
    "hot_expected": ("OK", "Pass", "Page opens", "No error is shown", "User is logged in", "As designed",
                     "Works",
                     "The change is saved", "Same result", "Screen matches the design", "Nothing is lost",
                     "Success"),
    "detail": (
        "Use {email} and the default password of {env}.",
        "Do it once over {network} and once with {device} on {os}; note any difference in the run's comment.",
        "If {event} in between, start again from the first step and do not reuse {order}.",
        "The request in the network tab must answer with {status} and take less than {n:200-2400} ms.",
        "Take a screenshot of the {screen} screen before and after, and attach both to {ticket}.",
        "Compare with {ticket}, where the same screen showed {error} to the {role}.",
        "The data set of {env} has {n:3-900} entries for {team}; any other number means the import is stale.",
        "Keep the developer tools open, filter by \"{screen}\" and look for warnings of level {n:2-5}.",
        "Known limitation: with {os} the {screen} screen needs {time} to show the new value.",
    ),
    "comment": (
        "Blocked by {ticket}", "Flaky on {device}", "see {ticket}", "Not automated: needs {device}",
        "Needs {env}",
        "Only for build {build} and later", "Checked with {who}, wording is final", "candidate for removal",
        "Runs {time} on {env}; keep out of the smoke plan until {ticket} is closed",
        "Was split from {ticket} because {event} could not be tested together with {network}",
        "TODO: add {locale} texts",
    ),
    "environment": (
        "Devices: {device} ({os}), {device} ({os}), {device} ({os}), {device} ({os})",
        "Server: {env}, build {build}", "Browsers: {browser}, {browser}, {browser}",
        "Accounts: {email} ({role}), {email} ({role}), {email} ({role})",
        "Network: {network}, then {network}", "Languages: {locale}, {locale} and {locale}",
        "How to read the results: P = passed, F = failed, NA = not applicable, m = phone, t = tablet",
        "Test data: {match} at {venue}, {seat}, price {money}; {order} must be paid, {order} must be open",
        "Feature switch \"new-{screen}\" is on for {n:5-100} % of the accounts of {team}",
        "Related tickets: {ticket}, {ticket}, {ticket}", "Time zone of the device is that of {venue}",
    ),
}  # fmt: skip

_SLOT = re.compile(r"\{([A-Za-z_]+)(?::(\d+)-(\d+))?\}")


@cache
def _compiled(template: str) -> tuple[tuple[str, str, int, int], ...]:
    """(literal before, slot name or '', low, high) for each slot, then the tail."""
    parts: list[tuple[str, str, int, int]] = []
    at = 0
    for slot in _SLOT.finditer(template):
        name = slot[1]
        if name != "n" and name.lower() not in POOLS:
            raise KeyError(f"unknown slot {{{name}}} in {template!r}")
        parts.append((template[at : slot.start()], name, int(slot[2] or 0), int(slot[3] or 0)))
        at = slot.end()
    parts.append((template[at:], "", 0, 0))
    return tuple(parts)


def fill(draw: Draw, template: str) -> str:
    """The template with each slot drawn."""
    if "{" not in template:
        return template
    out: list[str] = []
    for literal, name, low, high in _compiled(template):
        out.append(literal)
        if name == "n":
            out.append(str(draw.between(low, high)))
        elif name:
            value = fill(draw, draw.pick(POOLS[name.lower()]))
            out.append(value[:1].upper() + value[1:] if name[0].isupper() else value)
    return "".join(out)
