"""Where a text has e-mail addresses, phone numbers, card and account numbers, IP addresses and secrets.

Phone numbers are Google's libphonenumber (`phonenumbers`): valid in their region, and no hotline. Secrets go by the prefixes and
lengths that their makers publish (`TOKENS` names each). detect-secrets 1.5.0 knows the same formats, reads 1.9 MB/s on one core
(here more than a hundred are read), and has had no release since May 2024; so it is not used.

What documentation uses as an example is no finding: example.com and its like (RFC 2606, RFC 6761), 555-0100 to 555-0199 (NANPA),
the numbers that Ofcom keeps for drama, private and documentation networks (RFC 1918, RFC 5737, RFC 3849), card numbers that
payment services publish for tests, AKIAIOSFODNN7EXAMPLE, and whatever says that it is an example.

All patterns are bounded, so that time is in proportion to the text: of a megabyte, two seconds at most; half a minute where it is
digits and blanks throughout, each run of which libphonenumber looks at.
"""

from __future__ import annotations

import functools
import ipaddress
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from datakit.errors import UserError


@dataclass(frozen=True)
class Found:
    """A finding: where it stands, its kind, and what it is (of secrets: of which service)."""

    start: int
    end: int
    kind: str
    name: str


def find(text: str, kinds: Sequence[str], regions: Sequence[str]) -> list[Found]:
    """All findings of some kinds, in the order of the text; none overlaps another. `regions` are those of local phone numbers."""
    found: list[Found] = []
    for kind in KINDS:
        if kind in kinds:
            found += [each for each in _FINDERS[kind](text, regions) if not any(_overlap(each, other) for other in found)]
    return sorted(found, key=lambda each: each.start)


def _overlap(one: Found, other: Found) -> bool:
    return one.start < other.end and other.start < one.end


# ------------------------------------------------------------------------------------------------------------------- addresses

# RFC 5321: at most 64 characters before the @. ASCII alone, so that no letter of a text without spaces is taken along.
_EMAIL = re.compile(
    r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9][A-Za-z0-9._%+-]{0,63}@((?:[A-Za-z0-9-]{1,63}\.){1,5}[A-Za-z]{2,24})(?![A-Za-z0-9])"
)
_EXAMPLE_DOMAIN = re.compile(r"(?i)(?:^|\.)(?:example\.[a-z]{2,3}(?:\.[a-z]{2})?|(?:example|test|invalid|localhost|local))$")
_USER = re.compile(r"://[^\s/@]{0,64}:$")


def _emails(text: str, regions: Sequence[str]) -> Iterator[Found]:
    for match in _EMAIL.finditer(text):
        # "git@github.com:owner/repository" is an address of code, "https://user:word@host" one of a server.
        server = _USER.search(text, max(0, match.start() - 80), match.start()) or match[0].startswith("git@")
        if not _EXAMPLE_DOMAIN.search(match[1]) and not server:
            yield Found(match.start(), match.end(), "email", "email")


_IPV4 = re.compile(r"(?<![\w.-])(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\d)")
_IPV6 = re.compile(r"(?<![\w:.])[0-9A-Fa-f]{1,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?![\w:])")
_VERSION = re.compile(r"(?i)(?:version|release|ver\.?|section|chapter|\bEC|v|==|>=|<=|~=)\s{0,2}$")
# Resolvers that everybody may ask (Google, Cloudflare, Quad9, OpenDNS).
_RESOLVERS = {"8.8.8.8", "8.8.4.4", "1.1.1.1", "1.0.0.1", "9.9.9.9", "149.112.112.112", "208.67.222.222", "208.67.220.220"}


def _ip_addresses(text: str, regions: Sequence[str]) -> Iterator[Found]:
    for pattern in (_IPV4, _IPV6):
        for match in pattern.finditer(text):
            try:
                address = ipaddress.ip_address(match[0])
            except ValueError:
                continue
            # Four single digits are a section or a version, and "1::2" is a slice.
            numbered = len(match[0]) <= 7 or _VERSION.search(text, max(0, match.start() - 12), match.start())
            if address.is_global and not address.is_multicast and match[0] not in _RESOLVERS and not numbered:
                yield Found(match.start(), match.end(), "ip_address", "ip_address")


# --------------------------------------------------------------------------------------------------------------------- numbers

_PHONE = re.compile(r"(?<![\w.,/])[+(]{0,2}\d(?:[\s().\-/\u2010-\u2015]{0,3}\d){6,16}(?!\w)")
_SEPARATED = re.compile(r"\d[\s().\-/\u2010-\u2015]+\d")
_DATE = re.compile(r"(?<!\d)(?:19|20)\d\d([\-/.])(?:0?[1-9]|1[0-2])\1[0-3]?\d(?!\d)")
# 555-0100 to 555-0199 (NANPA); 01632 960xxx, 07700 900xxx, 020 7946 0xxx and 0xxx 496 0xxx (Ofcom).
_FICTIONAL = re.compile(r"1\d{3}55501\d\d|44(?:1632960\d{3}|7700900\d{3}|2079460\d{3}|[12]\d{2,3}4960\d{3})")


def _phones(text: str, regions: Sequence[str]) -> Iterator[Found]:
    library, personal = _phonenumbers()
    for candidate in _PHONE.finditer(text):
        # A run of digits without + or a space is more often the number of something else.
        if "+" not in candidate[0] and (not _SEPARATED.search(candidate[0]) or _DATE.search(candidate[0])):
            continue
        start, end = candidate.span()
        window = text[max(0, start - 2) : end + 2]
        for region in regions if "+" not in candidate[0] else (None,):
            matches = list(library.PhoneNumberMatcher(window, region, max_tries=8))
            offset = max(0, start - 2)
            known = [match for match in matches if library.number_type(match.number) in personal]
            for match in known:
                digits = f"{match.number.country_code}{match.number.national_number}"
                # A bracket around the number is none of its own.
                outer = match.raw_string.startswith("(") and ")" not in match.raw_string
                if not _FICTIONAL.fullmatch(digits):
                    yield Found(offset + match.start + outer, offset + match.end, "phone", "phone")
            if matches:
                break


@functools.cache
def _phonenumbers() -> tuple[Any, frozenset[int]]:
    """The library, and the types of numbers that belong to somebody: no toll-free, premium-rate or shared-cost hotlines."""
    try:
        import phonenumbers
    except ImportError as error:
        raise UserError(
            "The filter 'personal_data' needs the package 'phonenumbers' for phone numbers, and it is not installed. Install it "
            "with: pip install phonenumbers. Or leave them out: kinds: {phone: keep}."
        ) from error
    types = phonenumbers.PhoneNumberType
    return phonenumbers, frozenset(
        (types.FIXED_LINE, types.MOBILE, types.FIXED_LINE_OR_MOBILE, types.VOIP, types.PERSONAL_NUMBER, types.PAGER)
    )


def check_regions(regions: Sequence[str]) -> list[str]:
    """The regions that libphonenumber does not know."""
    library, _ = _phonenumbers()
    return [region for region in regions if region not in library.SUPPORTED_REGIONS]


_CARD = re.compile(r"(?<![\w.-])\d(?:[ -]?\d){12,18}(?![\w-])")
# What card networks issue: first digits and lengths (ISO/IEC 7812 and the networks' own pages).
_ISSUED = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}|3[47]\d{13}"
    r"|3(?:0[0-5]|[68]\d)\d{11}|6(?:011|5\d\d|4[4-9]\d)\d{12}|35(?:2[89]|[3-8]\d)\d{12}"
)
# Numbers that Stripe, PayPal and Adyen publish for tests.
_TEST_CARDS = frozenset(
    re.findall(
        r"\d+",
        "4242424242424242 4111111111111111 4012888888881881 4000056655665556 4222222222222 5555555555554444 5105105105105100 "
        "5200828282828210 2223003122003222 378282246310005 371449635398431 378734493671000 6011111111111117 6011000990139424 "
        "30569309025904 38520000023237 3530111333300000 3566002020360505 4000000000000002 4917610000000000",
    )
)


def _credit_cards(text: str, regions: Sequence[str]) -> Iterator[Found]:
    for match in _CARD.finditer(text):
        digits = re.sub(r"\D", "", match[0])
        issued = digits.isascii() and _ISSUED.fullmatch(digits) and digits not in _TEST_CARDS and len(set(digits)) > 3
        if issued and luhn(digits):
            yield Found(match.start(), match.end(), "credit_card", "credit_card")


def luhn(digits: str) -> bool:
    """Whether the last digit is the check digit of the others (ISO/IEC 7812-1, annex B)."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + place % 2)
        total += value - 9 * (value > 9)
    return total % 10 == 0


_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}")
# Characters of an IBAN by country (SWIFT IBAN registry, ISO 13616).
_IBAN_LENGTHS = {
    country: int(length)
    for length, countries in (
        ("15", "NO"), ("16", "BE"), ("18", "DK FI FO GL NL SD"), ("19", "MK SI"), ("20", "AT BA EE KZ LT LU XK"),
        ("21", "CH HR LI LV"), ("22", "BG BH CR DE GB GE IE ME RS VA"), ("23", "AE GI IL IQ TL"),
        ("24", "AD CZ ES MD PK RO SA SE SK TN VG"), ("25", "LY PT ST"), ("26", "IS TR"), ("27", "FR GR IT MC MR SM"),
        ("28", "AL AZ BY CY DO GT HU LB PL SV"), ("29", "BR EG PS QA UA"), ("30", "JO KW MU"), ("31", "MT SC"), ("32", "LC"),
    )
    for country in countries.split()
}  # fmt: skip
# The examples of the registry and of ISO 13616 that manuals copy.
_EXAMPLE_IBANS = frozenset(
    ("GB29NWBK60161331926819", "GB82WEST12345698765432", "DE89370400440532013000", "FR1420041010050500013M02606")
)


def _ibans(text: str, regions: Sequence[str]) -> Iterator[Found]:
    for match in _IBAN.finditer(text):
        length = _IBAN_LENGTHS.get(match[0][:2], 0)
        places = [place for place, character in enumerate(match[0]) if character != " "]
        if not 0 < length <= len(places):
            continue
        end = places[length - 1] + 1
        iban = match[0][:end].replace(" ", "")
        after = match.start() + end
        whole = after == len(text) or not text[after].isalnum()
        if whole and iban not in _EXAMPLE_IBANS and _mod_97(iban):
            yield Found(match.start(), after, "iban", "iban")


def _mod_97(iban: str) -> bool:
    """The check of ISO 7064 (MOD 97-10): letters are 10 to 35, the first four characters go to the end."""
    return int("".join(str(int(character, 36)) for character in iban[4:] + iban[:4])) % 97 == 1


# --------------------------------------------------------------------------------------------------------------------- secrets

# Tokens of services, as they describe them: (name, pattern). What a group (1) catches is the secret; else all of it is.
TOKENS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (name, re.compile(pattern))
    for name, pattern in (
        # RFC 7468 and its OpenSSH and PGP kin; cut off keys too.
        ("private_key", r"-----BEGIN (?:[A-Z0-9]{1,12} ){0,3}PRIVATE KEY(?: BLOCK)?-----"
         r"(?:[^-]{1,12000}(?:-----END (?:[A-Z0-9]{1,12} ){0,3}PRIVATE KEY(?: BLOCK)?-----)?)?"),
        # docs.aws.amazon.com, "IAM identifiers": unique prefixes
        ("aws_key", r"(?<![A-Za-z0-9])(?:AKIA|ASIA)[A-Z2-7]{16}(?![A-Za-z0-9])"),
        # github.blog, 2021-04-05, "Behind GitHub's new authentication token formats"
        ("github_token", r"(?<!\w)gh[pousr]_[A-Za-z0-9]{36,255}(?!\w)|(?<!\w)github_pat_[A-Za-z0-9]{22}_[A-Za-z0-9]{59}(?!\w)"),
        # docs.gitlab.com, "Token overview"
        ("gitlab_token", r"(?<!\w)gl(?:pat|dt|rt|cbt|ptt|ft|imt|soat|oas|agent)-[A-Za-z0-9_.\-]{19,63}[A-Za-z0-9_\-](?!\w)"),
        # api.slack.com, "Token types" and "Incoming webhooks"
        ("slack_token", r"(?<!\w)xox[abeoprs]-(?:\d{1,15}-){1,4}[A-Za-z0-9]{10,80}"
         r"|hooks\.slack\.com/services/T\w{6,14}/B\w{6,14}/\w{16,32}"),
        # docs.stripe.com, "API keys"
        ("stripe_key", r"(?<!\w)[rs]k_live_[A-Za-z0-9]{20,247}(?!\w)|(?<!\w)whsec_[A-Za-z0-9+/]{32,64}"),
        # platform.openai.com and docs.anthropic.com: the forms of their keys
        ("openai_key", r"(?<![\w-])sk-(?:[A-Za-z0-9_\-]{1,120})?[A-Za-z0-9]{20}T3BlbkFJ[A-Za-z0-9_\-]{20,120}"),
        ("anthropic_key", r"(?<![\w-])sk-ant-[a-z0-9]{3,10}-[A-Za-z0-9_\-]{80,120}"),
        # huggingface.co/docs/hub/security-tokens
        ("huggingface_token", r"(?<!\w)hf_[A-Za-z]{34}(?!\w)"),
        # cloud.google.com, "Using API keys"; OAuth client secrets
        ("google_key", r"(?<![\w-])AIza[A-Za-z0-9_\-]{35}(?![\w-])|(?<![\w-])GOCSPX-[A-Za-z0-9_\-]{28}(?![\w-])"),
        # docs.npmjs.com "About access tokens"; warehouse.pypa.io "Token scanning"
        ("npm_token", r"(?<!\w)npm_[A-Za-z0-9]{36}(?!\w)"),
        ("pypi_token", r"(?<!\w)pypi-AgE[A-Za-z0-9_\-]{60,300}"),
        # docs.sendgrid.com, "API keys"; mailchimp.com/developer; twilio.com/docs, "API keys"
        ("sendgrid_key", r"(?<!\w)SG\.[A-Za-z0-9_\-]{22}\.[A-Za-z0-9_\-]{43}(?!\w)"),
        ("mailchimp_key", r"(?<!\w)[0-9a-f]{32}-us[0-9]{1,2}(?!\w)"),
        ("twilio_key", r"(?<!\w)SK[0-9a-f]{32}(?!\w)"),
        # core.telegram.org/bots/api; discord.com/developers/docs/reference
        ("telegram_token", r"(?<![\w:])\d{8,10}:AA[A-Za-z0-9_\-]{33}(?![\w-])"),
        ("discord_token", r"(?<![\w.])[MNO][A-Za-z0-9_\-]{23,25}\.[A-Za-z0-9_\-]{6}\.[A-Za-z0-9_\-]{27,38}(?![\w-])"),
        # learn.microsoft.com, "Configure connection strings"
        ("azure_key", r"(?:AccountKey|SharedAccessKey)=([A-Za-z0-9+/]{42,86}={0,2})"),
        # RFC 7519: header and payload are JSON objects, so both begin with eyJ
        ("jwt", r"(?<![\w.-])eyJ[A-Za-z0-9_\-]{10,2000}\.eyJ[A-Za-z0-9_\-]{10,4000}\.[A-Za-z0-9_\-]{16,1000}"),
        # RFC 3986, user information
        ("url_password", r"[a-z][a-z0-9+.\-]{1,20}://[^\s:/@'\"<>]{1,64}:([^\s/@'\"<>]{3,128})@[A-Za-z0-9\[]"),
    )
)  # fmt: skip

# A name that says it is a secret, and a quoted value that looks drawn at random.
_ASSIGNED = re.compile(
    r"(?i)(?<![A-Za-z])(?:api[_\-]?key|secret[_\-]?key|client[_\-]?secret|access[_\-]?key|access[_\-]?token|auth[_\-]?token|secret"
    r"|token|passw(?:or)?d|passwd|pwd)[\"']?\]?\s{0,3}(?::=|=>|=|:)\s{0,3}[\"']([^\s\"'<>{}$%]{12,120})[\"']"
)
_PLACEHOLDER = re.compile(
    r"(?i)example|sample|dummy|placeholder|changeme|password|secret|your|xxxx|\*\*\*|\.\.\.|test|foo|1234567|abcdef|deadbeef"
)
_RANDOM_BITS = 3.2


def _secrets(text: str, regions: Sequence[str]) -> Iterator[Found]:
    for name, pattern in TOKENS:
        for match in pattern.finditer(text):
            group = 1 if pattern.groups else 0
            if not _is_example(name, match[group]):
                yield Found(*match.span(group), "secret", name)
    for match in _ASSIGNED.finditer(text):
        value = match[1]
        drawn = any(map(str.isdigit, value)) and any(map(str.isalpha, value)) and entropy(value) >= _RANDOM_BITS
        if drawn and not _PLACEHOLDER.search(value):
            yield Found(*match.span(1), "secret", "assigned_secret")


def _is_example(name: str, value: str) -> bool:
    if name == "private_key":
        # Only the words, as in a sentence about the format.
        return len(re.sub(r"-----[^-]*-----|\s", "", value)) < 40
    if name == "url_password":
        return bool(_PLACEHOLDER.search(value)) or not value.isascii() or value.lower() in ("pass", "passwd", "pwd", "port")
    return "EXAMPLE" in value.upper() or entropy(value) < 2.5


def entropy(text: str) -> float:
    """Bits for each character, by how often each stands in the text (Shannon)."""
    return -sum(count / len(text) * math.log2(count / len(text)) for count in Counter(text).values()) if text else 0.0


# In the order of who takes a text that two of them claim. For each kind, patterns one of which is in every text where its finder
# finds something. Rust's regex reads gigabytes a second with patterns as simple as these, and 2 MB/s with all of them as one.
KINDS: dict[str, tuple[str, ...]] = {
    "secret": (
        r"PRIVATE KEY|AKIA[A-Z2-7]|ASIA[A-Z2-7]|gh[pousr]_[A-Za-z0-9]|github_pat_|hooks\.slack\.com|k_live_|whsec_|T3BlbkFJ"
        r"|sk-ant-|hf_[A-Za-z]|AIza[A-Za-z0-9_\-]|GOCSPX-|npm_[A-Za-z0-9]|pypi-AgE|SG\.[A-Za-z0-9_\-]|AccountKey=|AccessKey=|eyJ[A-Za-z0-9_\-]",
        r"xox[abeoprs]-[0-9]|gl[a-z]{2,5}-[A-Za-z0-9_\-]",
        r"[0-9a-f]{32}",
        r"[0-9]{8}:AA",
        r"[A-Za-z0-9_\-]{24}\.[A-Za-z0-9_\-]{6}\.",
        r"://[^\s:/@'\x22<>]+:[^\s/@'\x22<>]+@",
        r"[=:]>?\s{0,3}[\x22'][^\s\x22'<>{}$%]{12}",
    ),
    "email": (r"@[A-Za-z0-9\-]",),
    "iban": (r"[A-Z]{2}[0-9]{2} ?[A-Z0-9]",),
    "credit_card": (r"\d(?:[ \-]?\d){12}",),
    "ip_address": (r"[0-9]\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]", r":[0-9A-Fa-f]{0,4}:"),
    "phone": (r"\d(?:[\s().\-/\x{2010}-\x{2015}]{0,3}\d){6}",),
}

_FINDERS: dict[str, Callable[[str, Sequence[str]], Iterator[Found]]] = {
    "secret": _secrets,
    "email": _emails,
    "iban": _ibans,
    "credit_card": _credit_cards,
    "ip_address": _ip_addresses,
    "phone": _phones,
}
