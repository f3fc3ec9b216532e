"""Who we are to the tracking store: secrets come from the environment, leave a URI at once, and are shown to nobody.

A password in `--tracking-uri` moves into the variable where the client or driver of that store looks for it anyway.
What handles the URI from then on (settings, files, Ray, errors, commands that are printed) never had it. So it is with
a webhook's URL in `notify`, which is a secret as a whole.
"""

import os
import re
import sys
from typing import Any
from urllib.parse import parse_qsl, quote, quote_plus, unquote, urlencode, urlsplit

from trainables.errors import InputError

USERNAME, PASSWORD, TOKEN = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"
LOG_IN = f"{USERNAME} and {PASSWORD}, or {TOKEN}"
# What each database's own tools read; the drivers of PostgreSQL that stand on libpq do so too.
DATABASE_PASSWORDS = {"postgresql": "PGPASSWORD", "mysql": "MYSQL_PWD", "mssql": "SQLCMDPASSWORD"}
LIBPQ = ("postgresql", "postgresql+psycopg2", "postgresql+psycopg")
NOTIFY_URL, FROM_ENVIRONMENT = "OFAKD_NOTIFY_URL", "env:"  # where a webhook that was typed goes, and how that is told
AWS = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
SECRETS = (PASSWORD, TOKEN, *DATABASE_PASSWORDS.values(), *AWS, NOTIFY_URL)
HIDDEN = "***"
NAMES_SECRET = r"[\w.-]*(?:passw|passphrase|pwd|token|secret)[\w.-]*"  # of a query's parameters; passfile is a path
TYPED = "OFAKD_LOG_IN_TYPED"  # names the variables that got what was in a URI, for processes that follow


def set_aside(uri: str) -> str:
    """A tracking URI without its secrets, which the environment of this process and its children has from now on.

    A user and password of a server go to `MLFLOW_TRACKING_USERNAME` and `_PASSWORD`, which MLflow's client reads, a
    database's password to `PGPASSWORD` or its like. They go above what is there: who types them means them.

    Raises:
        InputError: the URI has a secret that could not be used from there, or is torn by an unquoted character.
    """
    parts = urlsplit(uri)
    web, dialect = parts.scheme in ("http", "https"), parts.scheme.split("+")[0]
    if not web and dialect not in DATABASE_PASSWORDS:
        return uri
    beyond = uri.partition("://")[2].removeprefix(parts.netloc)
    if "@" in beyond:
        fix = "write / ? # and @ in a password as %2F %3F %23 and %40"
        raise InputError(f"tracking_uri: {shown(uri)} has an '@' after its host; {fix}")
    user_info, at, host = parts.netloc.rpartition("@")
    user, _, password = user_info.partition(":")
    query = parts.query
    if web:
        if query:
            problem = f"has a query, which MLflow's client cannot send; a token belongs in {TOKEN}"
            raise InputError(f"tracking_uri: {shown(uri)} {problem}")
        if password and not user:
            raise InputError(f"tracking_uri: {shown(uri)} has a password and no user; a token belongs in {TOKEN}")
        _take({USERNAME: unquote(user), PASSWORD: unquote(password)})
        netloc = host
    else:
        given, kept = [unquote(password)], []
        for key, value in parse_qsl(query, keep_blank_values=True):
            if key.lower() in ("password", "passwd"):
                given.append(value)
            elif re.fullmatch(NAMES_SECRET, key, re.I) or re.search(r"pwd=", value, re.I):
                fix = "keep it where the driver finds it, as in ~/.pg_service.conf"
                raise InputError(f"tracking_uri: {shown(uri)} has a secret in its query; {fix}")
            else:
                kept.append((key, value))
        if any(given[1:]):
            query = urlencode(kept, safe="/:,")
        _take({DATABASE_PASSWORDS[dialect]: next(filter(None, reversed(given)), "")})
        netloc = f"{user}{at}{host}"
    tail = beyond.partition("?")[0] + (f"?{query}" if query else "")
    return f"{uri.partition('://')[0]}://{netloc}{tail}"


def check_storage(url: str, field: str = "storage") -> None:
    """Refuses a secret in the URL of an object store: its client finds what it needs in the environment.

    Args:
        field: the setting that has it, for the error message.

    Raises:
        InputError: there is one.
    """
    parts = urlsplit(url)
    named = [name for name, _ in parse_qsl(parts.query) if re.fullmatch(NAMES_SECRET, name, re.I)]
    if parts.password is not None or named or "@" in parts.path:
        fix = "credentials come from the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE)"
        raise InputError(f"{field}: {shown(url)} has a secret in it; {fix}")


def _take(found: dict[str, str]) -> None:
    for name, value in found.items():
        if value:
            os.environ[name] = value
            names = os.environ.get(TYPED, "").split()
            os.environ[TYPED] = " ".join(dict.fromkeys([*names, name]))


def without_secrets(flags: dict[str, Any], sets: list[str]) -> tuple[dict[str, Any], list[str]]:
    """A study's flags and `--set` items, the tracking URI among them as `set_aside` gives it.

    Raises:
        InputError: as `set_aside`.
    """
    if uri := flags.get("tracking_uri"):
        flags = {**flags, "tracking_uri": set_aside(uri)}
    return flags, [_item_without(item) for item in sets]


def _item_without(item: str) -> str:
    name, equals, value = item.partition("=")
    value = value.strip(chr(39) + chr(34))
    if name == "notify" and has_webhook(value):
        _take({NOTIFY_URL: value})
        return f"{name}={FROM_ENVIRONMENT}{NOTIFY_URL}"
    return f"{name}={set_aside(value)}" if name == "tracking_uri" and equals else item


def is_webhook(target: str) -> bool:
    """Whether what is to be notified is a webhook, and no command."""
    return target.lower().startswith(("http://", "https://"))


def has_webhook(target: str) -> bool:
    """Whether it is a webhook, or a command with a URL in it, which may be one: whoever knows that may use it."""
    return re.search(r"https?://", target, re.I) is not None


def words_without(words: list[str]) -> list[str]:
    """A command line's words, the tracking URI among them as `set_aside` gives it, a webhook's in the environment.

    Raises:
        InputError: as `set_aside`.
    """
    found, before = [], ""
    for word in words:
        name, equals, value = word.partition("=")
        if before.startswith("--track"):
            word = set_aside(word)
        elif equals and (name == "tracking_uri" or name.startswith("--track")):
            word = _item_without(f"tracking_uri={value}").replace("tracking_uri", name, 1)
        elif name == "notify":
            word = _item_without(word)
        elif name == "--set":
            word = f"--set{equals}{_item_without(value)}"
        found.append(word)
        before = word
    return found


def retype() -> None:
    """Begins this command anew, where its words have secrets: `ps` shows them to all, and Ray keeps them with its job.

    Raises:
        InputError: as `set_aside`.
    """
    words = words_without(sys.orig_argv[1:])
    if words != sys.orig_argv[1:]:
        os.execv(sys.executable, [sys.executable, *words])


def reminder() -> str:
    """What a session whose URI had secrets says beside the command that goes on; else empty."""
    typed = os.environ.get(TYPED, "").split()
    names = " and ".join(name for name in typed if name != NOTIFY_URL)
    said = [f"the log-in that --tracking-uri had is kept nowhere: give it again, or set {names}"] if names else []
    if NOTIFY_URL in typed:
        said.append(f"the webhook is kept nowhere: give it again, or set {NOTIFY_URL}")
    return "; ".join(said)


def with_password(uri: str) -> str:
    """The URI for a driver that reads no environment: with the database's password, where the environment has one."""
    parts = urlsplit(uri)
    name = DATABASE_PASSWORDS.get(parts.scheme.split("+")[0])
    password = os.environ.get(name or "")
    if not password or parts.scheme in LIBPQ or parts.password or not parts.username:
        return uri
    return uri.replace(f"{parts.netloc.rpartition('@')[0]}@", f"{parts.username}:{quote(password, safe='')}@", 1)


def shown(uri: str) -> str:
    """A URI as it may be shown and kept: without the user's password, also where it is none that can be read."""
    if "://" not in uri:
        return masked(uri)
    uri = re.sub(r"(://[^:/@]*):.*@", rf"\1:{HIDDEN}@", uri, flags=re.S)
    uri = re.sub(r"^(https?://)[^:/@]+@", rf"\1{HIDDEN}@", uri)  # a token, perhaps
    return masked(uri)


def masked(text: str) -> str:
    """A text, as a library's error, without passwords of URIs and without what the environment keeps secret."""
    text = re.sub(r"(\w://[^\s:/@]*):[^\s]*@", rf"\1:{HIDDEN}@", text)
    text = re.sub(rf"([?&;](?:amp;)?{NAMES_SECRET}=)[^\s&;'\"]+", rf"\1{HIDDEN}", text, flags=re.I)
    text = re.sub(r"(pwd(?:=|%3D))[^\s&;'\"]+", rf"\1{HIDDEN}", text, flags=re.I)  # of ODBC
    secrets = {os.environ.get(name, "").strip() for name in SECRETS} - {""}
    forms = {form for secret in secrets for form in (secret, quote(secret, safe=""), quote_plus(secret))}
    for form in sorted(forms, key=len, reverse=True):  # whole words: a short one is part of ordinary ones
        text = re.sub(rf"(?<!\w){re.escape(form)}(?!\w)", HIDDEN, text)
    return text
