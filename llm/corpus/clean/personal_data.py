"""Replacement of personal data: e-mail addresses, telephone numbers and public IP addresses.

The expressions are bounded and start only at the start of a run of their characters, so time grows
linearly with the text. (datatrove's expression for e-mail is quadratic in a long run such as
`a.a.a.a`.)
"""

from __future__ import annotations

import ipaddress
import re

from llm.params.clean import PersonalData

# Reserved examples that belong to no one: RFC 2606 (example.com), 555-01xx, RFC 5737, RFC 3849.
EMAIL, PHONE, IPV4, IPV6 = "email@example.com", "555-0100", "192.0.2.1", "2001:db8::1"

_LOCAL = r"A-Za-z0-9!#$%&'*+/=?^_`{|}~.\-"
_EMAIL = re.compile(
    rf"(?<![{_LOCAL}])[{_LOCAL}]{{1,64}}@(?:[A-Za-z0-9\-]{{1,63}}\.){{1,8}}[A-Za-z]{{2,24}}(?![\w@])"
)
_BYTE = r"(?:25[0-5]|2[0-4]\d|1?\d?\d)"
_IPV4 = re.compile(rf"(?<![\w.]){_BYTE}(?:\.{_BYTE}){{3}}(?!\w|\.\d)")
_IPV6 = re.compile(r"(?<![\w:.])[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?![\w:])")
# Every telephone number contains this, and most documents do not: a fast test.
_DIGITS = re.compile(r"\d{2}[^\w\n]{0,3}\d{2}")


def mask(text: str, wanted: PersonalData) -> tuple[str, dict[str, int]]:
    """Replace the wanted kinds of data; return the text and the number of replacements by kind."""
    counts: dict[str, int] = {}
    if wanted.email and "@" in text:
        text, counts["email"] = _EMAIL.subn(EMAIL, text)
    if wanted.ip:
        text, four = _public(text, _IPV4, IPV4)
        text, six = _public(text, _IPV6, IPV6) if "::" in text or text.count(":") > 6 else (text, 0)
        counts["ip"] = four + six
    if wanted.phone and _DIGITS.search(text):
        text, counts["phone"] = _phones(text, wanted.phone)
    return text, {name: count for name, count in counts.items() if count}


def _public(text: str, pattern: re.Pattern[str], replacement: str) -> tuple[str, int]:
    """Replace public addresses; private ones and text that only looks like an address stay."""
    count = 0

    def replace(match: re.Match[str]) -> str:
        nonlocal count
        try:
            public = ipaddress.ip_address(match[0]).is_global
        except ValueError:
            return match[0]
        count += public
        return replacement if public else match[0]

    return pattern.sub(replace, text), count


def _phones(text: str, region: str) -> tuple[str, int]:
    """Replace numbers that libphonenumber finds valid in the region, or with a country's +code."""
    import phonenumbers

    pieces, end, count = [], 0, 0
    for match in phonenumbers.PhoneNumberMatcher(text, region):
        pieces += [text[end : match.start], PHONE]
        end, count = match.end, count + 1
    return "".join([*pieces, text[end:]]), count
