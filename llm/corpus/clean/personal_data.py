"""Personal data: e-mail addresses, telephone numbers and public IP addresses, replaced by reserved
examples.

The expressions are bounded and begin only where a run of their characters begins, so that a
document of any size takes time in proportion (datatrove's own for e-mail is quadratic in a long run
such as `a.a.a.a`)."""

from __future__ import annotations

import ipaddress
import re

from llm.params import PersonalData

# Addresses that stand for no one: RFC 2606 (example.com), 555-01xx, RFC 5737, RFC 3849.
EMAIL, PHONE, IPV4, IPV6 = "email@example.com", "555-0100", "192.0.2.1", "2001:db8::1"

_LOCAL = r"A-Za-z0-9!#$%&'*+/=?^_`{|}~.\-"
_EMAIL = re.compile(
    rf"(?<![{_LOCAL}])[{_LOCAL}]{{1,64}}@(?:[A-Za-z0-9\-]{{1,63}}\.){{1,8}}[A-Za-z]{{2,24}}(?![\w@])"
)
_BYTE = r"(?:25[0-5]|2[0-4]\d|1?\d?\d)"
_IPV4 = re.compile(rf"(?<![\w.]){_BYTE}(?:\.{_BYTE}){{3}}(?!\w|\.\d)")
_IPV6 = re.compile(r"(?<![\w:.])[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?![\w:])")
_DIGITS = re.compile(
    r"\d{2}[^\w\n]{0,3}\d{2}"
)  # a telephone number has this somewhere: most documents have no such


def mask(text: str, wanted: PersonalData) -> tuple[str, dict[str, int]]:
    """The text with what is wanted replaced, and how many of each were."""
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
    """Addresses of the public internet; those of private networks, and what only looks like one,
    stay.
    """
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
    """Valid numbers as libphonenumber finds them: of the region, and of any country with its +code."""
    import phonenumbers

    pieces, at, count = [], 0, 0
    for match in phonenumbers.PhoneNumberMatcher(text, region):
        pieces += [text[at : match.start], PHONE]
        at, count = match.end, count + 1
    return "".join([*pieces, text[at:]]), count
