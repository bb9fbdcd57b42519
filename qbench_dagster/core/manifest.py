"""What a backup says of itself, and how a restored database is told from the one it was made of.

Here is the form of `manifest.json` and the comparison. Making dumps and hashing rows are adapters.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

FORMAT = 1
"""Of the manifest, and of the row hashes in it (sql/backup.sql)."""


class ManifestError(ValueError):
    """A manifest that cannot be used; the text says what it lacks."""


@dataclass(frozen=True, slots=True)
class TableState:
    """All rows of one table: how many, and a hash that does not depend on their order."""

    rows: int
    hash: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What was backed up: from where, with what, and each table by its qualified name.

    `files` are the bytes of each file of the dump, `migrations` the names applied to the database, `owners` who owned
    each schema, `tools` the version of pg_dump.
    """

    created_at: str
    qbench: str
    database: str
    server: str
    pgvector: str
    vector_schema: str
    tools: str
    migrations: Sequence[str]
    owners: Mapping[str, str]
    settings: Mapping[str, str]
    tables: Mapping[str, TableState]
    files: Mapping[str, int]

    @property
    def rows(self) -> int:
        """Rows of all tables."""
        return sum(table.rows for table in self.tables.values())

    @property
    def bytes(self) -> int:
        """Bytes of all files of the dump."""
        return sum(self.files.values())

    def dumps(self) -> str:
        """The text of manifest.json."""
        return json.dumps({"format": FORMAT, **asdict(self)}, ensure_ascii=False, indent=1) + "\n"


def parse_manifest(text: str) -> Manifest:
    """The manifest that `text` is. Raises ManifestError: not one, of a newer version, or incomplete."""
    try:
        value: Any = json.loads(text)
    except ValueError as error:
        raise ManifestError(f"it is no JSON ({error})") from None
    if not isinstance(value, dict) or not isinstance(value.get("format"), int):
        raise ManifestError('it is no manifest of a backup: it has no "format"')
    if value["format"] > FORMAT:
        raise ManifestError(
            f"a newer qbench ({value.get('qbench', 'of unknown version')}) wrote it, in format {value['format']}; this "
            f"one reads up to {FORMAT}. Upgrade qbench"
        )
    if missing := [field.name for field in fields(Manifest) if field.name not in value]:
        raise ManifestError(f"it lacks {', '.join(missing)}")
    try:
        tables = {name: TableState(**state) for name, state in value["tables"].items()}
        files = {str(name): int(size) for name, size in value["files"].items()}
    except (TypeError, ValueError, AttributeError) as error:
        raise ManifestError(f"its tables or files cannot be read ({error})") from None
    known = {field.name: value[field.name] for field in fields(Manifest)}
    return Manifest(**{**known, "tables": tables, "files": files})


def differences(expected: Mapping[str, TableState], found: Mapping[str, TableState]) -> list[str]:
    """What differs, a sentence a table, in the order of their names. Empty where all rows are the same."""
    return [
        said
        for name in sorted({*expected, *found})
        if (said := _difference(name, expected.get(name), found.get(name))) is not None
    ]


def _difference(name: str, expected: TableState | None, found: TableState | None) -> str | None:
    if expected is None:
        return f"{name} is not in the backup"
    if found is None:
        return f"{name} is missing; it had {expected.rows:,} rows"
    if expected.rows != found.rows:
        return f"{name} has {found.rows:,} rows; it had {expected.rows:,}"
    if expected.hash != found.hash:
        return f"{name} has as many rows as it had ({expected.rows:,}), and at least one of them differs"
    return None


def wrong_files(expected: Mapping[str, int], found: Mapping[str, int]) -> list[str]:
    """Which files of a dump are missing, or of another size than they were written with."""
    return [
        f"{name} is missing" if name not in found else f"{name} has {found[name]:,} bytes instead of {size:,}"
        for name, size in sorted(expected.items())
        if found.get(name) != size
    ]


def split_rights(script: str, roles: set[str]) -> tuple[list[str], list[str]]:
    """The statements of a dump's rights that can be run where `roles` exist, and the roles that are missing.

    A line is a statement: pg_dump writes them so. Others of its lines only prepare the session.
    """
    kept, missing = [], set()
    for line in script.splitlines():
        if not line.startswith(("GRANT ", "REVOKE ", "ALTER DEFAULT PRIVILEGES ")):
            continue
        if absent := _roles_of(line) - roles - {"PUBLIC"}:
            missing |= absent
        else:
            kept.append(line)
    return kept, sorted(missing)


def _roles_of(line: str) -> set[str]:
    """The roles a GRANT, REVOKE or ALTER DEFAULT PRIVILEGES is about: after FOR ROLE, and last after TO or FROM."""
    words = line.rstrip(";").removesuffix(" WITH GRANT OPTION")
    defaults, _, rest = words.rpartition(" IN SCHEMA ") if words.startswith("ALTER ") else ("", "", words)
    named = {words.rpartition(" FROM " if "REVOKE " in rest else " TO ")[2]}
    if defaults:  # those without a schema are of the whole database, and not in a dump of schemas
        named.add(defaults.removeprefix("ALTER DEFAULT PRIVILEGES FOR ROLE "))
    return {role[1:-1].replace('""', '"') if role.startswith('"') else role for role in named}
