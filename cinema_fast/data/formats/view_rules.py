"""The view that a DICOM series shows, by rules on its description that a site can edit (`view_rules.yaml`)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ...common.parsed_file import parse_yaml
from .dicom_ragged import LONGEST_RUN, RAGGED, REFUSE

DEFAULT_RULES = Path(__file__).with_name("view_rules.yaml")
REPEATED = ("refuse", "last")


class Rule(NamedTuple):
    """A series whose description contains `match` shows `view`, or is left out for the reason `skip`."""

    match: re.Pattern[str]
    view: str | None
    skip: str | None


@dataclass(frozen=True, slots=True)
class ViewRules:
    """Rules in order. repeated: what to do with a slice that several series hold, one of REPEATED. ragged: what to do
    with a stack whose slices differ, one of RAGGED."""

    rules: tuple[Rule, ...]
    repeated: str
    ragged: str = REFUSE

    def view_of(self, *descriptions: str) -> tuple[str | None, str]:
        """(view, "") of a series; or (None, reason) to leave it out.

        descriptions: of one series, in order of precedence: a later one counts where no rule fits those before.
        """
        for description in descriptions:
            for rule in self.rules:
                if rule.match.search(description):
                    return rule.view, rule.skip or ""
        return None, "no rule fits its description"


def read_rules(path: Path | None = None) -> ViewRules:
    """Read a file of rules, by default the package's.

    Raises:
        ValueError: no such file, or not as `view_rules.yaml` describes; names the file and the rule.
    """
    import yaml

    path = path or DEFAULT_RULES
    try:
        content = parse_yaml(path.read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as err:
        raise ValueError(f"{path}: the view rules cannot be read ({' '.join(str(err).split())})") from err
    if not isinstance(content, dict) or not isinstance(content.get("rules"), list) or content.keys() - {
            "rules", "repeated", "ragged"}:
        raise ValueError(f"{path}: expected the keys rules (a list), repeated and ragged, as in {DEFAULT_RULES}")
    repeated = content.get("repeated", "refuse")
    if repeated not in REPEATED:
        raise ValueError(f"{path}: repeated is {repeated!r}, expected {' or '.join(REPEATED)}")
    ragged = content.get("ragged", REFUSE)
    if ragged not in RAGGED:
        raise ValueError(f"{path}: ragged is {ragged!r}, expected {' or '.join(RAGGED)}")
    if ragged == LONGEST_RUN and repeated != "last":
        raise ValueError(f"{path}: with ragged: {LONGEST_RUN} the last of repeated slices counts; expected repeated: "
                         f"last, got {repeated}")
    return ViewRules(tuple(_rule(path, n, rule) for n, rule in enumerate(content["rules"], 1)), repeated, ragged)


def _rule(path: Path, n: int, rule: object) -> Rule:
    where = f"{path}: rule {n}, {rule!r}"
    if not isinstance(rule, dict) or rule.keys() not in ({"match", "view"}, {"match", "skip"}) or not all(
            isinstance(value, str) and value for value in rule.values()):
        raise ValueError(f"{where}: expected {{match: EXPRESSION, view: NAME}} or {{match: EXPRESSION, skip: REASON}}")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", rule.get("view", "sax")):
        raise ValueError(f"{where}: the view is a name of a-z, 0-9 and _, such as sax, lax_2c, lax_3c or lax_4c")
    try:
        match = re.compile(rule["match"], re.IGNORECASE)
    except re.error as err:
        raise ValueError(f"{where}: not a regular expression ({err})") from None
    return Rule(match, rule.get("view"), rule.get("skip"))
