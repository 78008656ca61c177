"""Addresses (https://…, s3://…, postgresql://…), and the credentials that may stand in them.

A credential is: user and password before the host; a lone user of http, where it is a token; and
    what a query or a
fragment holds under a name such as token, sig or X-Amz-Signature. `?download=true` is none, nor is
a user without a password elsewhere, as in abfs://container@account and ssh://git@host.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote, unquote_plus

# Names in a query, of their letters and digits alone: how they end, and those that are just this.
SECRET_ENDS = (
    "token",
    "secret",
    "password",
    "passwd",
    "signature",
    "apikey",
    "accesskey",
    "secretkey",
    "credential",
)
SECRETS = {
    "sig",
    "key",
    "pwd",
    "pass",
    "auth",
    "authorization",
    "jwt",
    "accesskeyid",
    "awsaccesskeyid",
}
_SCHEME = r"[A-Za-z][A-Za-z0-9+.\-]*://"
# In prose an address ends at white space or a quote. One may follow another: simplecache::https://…
_IN_PROSE = re.compile(rf"""\b{_SCHEME}(?:(?!::{_SCHEME})[^\s"<>])*""")
_ALONE = re.compile(rf"\s*(?:[\w+.\-]+::)*{_SCHEME}")
_PAIR_IN_PROSE = re.compile(r"""([?&;#])([^\s?&;#="'<>/]+)=([^\s&;#"'<>)]*)""")
_PAIR_ALONE = re.compile(r"([?&;#])([^?&;#=/]+)=([^&;#]*)")


def without_credentials(text: str) -> str:
    """A text without the credentials of any address in it: as messages, manifests and trackers may
    show it.
    """
    return _without_pairs(
        _IN_PROSE.sub(lambda found: _without_user(found[0]), text), _PAIR_IN_PROSE
    )


def public(address: str) -> str:
    """The same of a text that is an address and nothing else, so that blanks and quotes are part of
    it.
    """
    if not _ALONE.match(address):
        return address
    parts = re.split(rf"::(?={_SCHEME})", address)
    return "::".join(_without_pairs(_without_user(part), _PAIR_ALONE) for part in parts)


def all_public(value: Any) -> Any:
    """The same of all texts in lists and dictionaries."""
    if isinstance(value, str):
        return without_credentials(public(value))
    if isinstance(value, dict):
        return {all_public(key): all_public(item) for key, item in value.items()}
    return [all_public(item) for item in value] if isinstance(value, list) else value


def refuse_credentials(value: Any, where: str, key: str = "") -> None:
    """Raise ValueError for an address with credentials in params, which go to dvc.lock, git and the
    trackers.
    """
    if isinstance(value, str) and public(value) != value:
        raise ValueError(
            f"{where}: {key}: {without_credentials(public(value))} was given with a user, a password, a token or a "
            "signature. Params are written to dvc.lock, git and MLflow, so take it out. Credentials belong into "
            "~/.netrc (https), or into the environment or the configuration of the protocol (AWS_…, AZURE_STORAGE_…, "
            "~/.config/fsspec); what only a signed address gives, download by hand and name the file. See docs/DATA.md."
        )
    if isinstance(value, dict):
        for name, item in value.items():
            refuse_credentials(str(name), where, key)
            refuse_credentials(item, where, f"{key}.{name}".lstrip("."))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            refuse_credentials(item, where, f"{key}[{number}]")


def opened(address: str) -> tuple[Any, str]:
    """The fsspec file system of an address, and the path in it; http takes ~/.netrc and the proxy's
    variables.
    """
    import fsspec

    settings = [fsspec.config.conf.setdefault(name, {}) for name in ("http", "https")]
    client = {"trust_env": True}  # unless fsspec's own configuration says otherwise
    for setting in settings:
        client |= setting.get("client_kwargs", {})
    settings[-1]["client_kwargs"] = client  # the last one counts
    found: tuple[Any, str] = fsspec.core.url_to_fs(address)
    return found


def _without_user(address: str) -> str:
    scheme, _, rest = address.partition("://")
    scheme += "://"
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    user, at, _ = authority.rpartition("@")
    if not at:  # `host:8080`, `[::1]:8080`; else a password that holds one of / ? #
        user = "" if re.fullmatch(r"(\[[^\]]*\]|[^:\[]*)(:\d*)?", authority) else authority
    if ":" in unquote(user) and "@" in rest:
        return scheme + rest.rpartition("@")[2]  # a password may hold any sign, also @ and /
    return scheme + rest[len(user) + 1 :] if at and scheme in ("http://", "https://") else address


def _without_pairs(text: str, pairs: re.Pattern[str]) -> str:
    def kept(found: re.Match[str]) -> str:
        name = re.sub(r"[^a-z0-9]", "", unquote_plus(found[2]).lower())
        value = unquote_plus(found[3])
        if (
            name in SECRETS or name.endswith(SECRET_ENDS) or public(value) != value
        ):  # an address may hold another
            return found[1].strip("&;") + "\0"
        return found[0]

    # What was cut out is marked by NUL until the signs around it are put right.
    return re.sub(r"[?#]\0+|\0", "", re.sub(r"([?#])\0+[&;]", r"\1", pairs.sub(kept, text)))
