"""The fields of a receipt: every member, its type and its limits."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from apps.common import signing

SCHEMA = "sparsekit.unlearning.receipt/1"

Count = Annotated[int, Field(ge=0, le=signing.LARGEST)]
Hash = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Text = Annotated[str, StringConstraints(min_length=1, max_length=2000)]
Time = Annotated[
    str, StringConstraints(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$", max_length=20)
]
Decimal = Annotated[
    str,
    StringConstraints(
        pattern=r"^-?(0|[1-9][0-9]*)(\.[0-9]+)?(e[+-][0-9]+)?$", max_length=30
    ),
]
Level = Literal["exact", "statistical"]
Provenance = Literal["dense", "data-free", "retain-only", "with-forget-data"]


class Strict(BaseModel):
    """Unknown keys and other types are refused."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Signature(Strict):
    """value: 64 bytes in base64; key_sha256: of the 32 bytes of the public key."""

    algorithm: Literal["Ed25519"]
    key_sha256: Hash
    value: Annotated[str, StringConstraints(max_length=100)]


class Request(Strict):
    """One deletion request of the batch; records: how many it names."""

    request: Text
    received: Time
    records: Count


class Data(Strict):
    """The training data by index. `index_sha256`: see SERVICE.md; no record is here."""

    name: Text
    content_sha256: Hash
    records_before: Count
    records_after: Count
    records_erased: Count
    index_sha256_before: Hash
    index_sha256_after: Hash
    index_sha256_erased: Hash


class File(Strict):
    """A file of the service's folder, named by its path in it."""

    path: Text
    bytes: Count
    sha256: Hash
    params_total: Count
    params_active: Count


class Mask(Strict):
    """Which weights exist, and what was seen when they were chosen."""

    provenance: Provenance
    note: Text


class Method(Strict):
    """What was run. options: the method's settings as text."""

    name: Text
    options: dict[Text, Text]
    seed: Count
    seconds: Decimal


class Estimate(Strict):
    """A value with its 95 % interval, null where one value alone leaves it unknown."""

    value: Decimal
    low: Decimal | None
    high: Decimal | None
    n: Count


class Comparison(Strict):
    """One number of three models; gap: unlearned - retrained, control: original -
    retrained. retrained: models trained from scratch without the erased records."""

    name: Text
    about: Text
    original: Estimate
    unlearned: Estimate
    retrained: Estimate
    gap: Estimate
    control: Estimate


class Audit(Strict):
    """margin: an attack's gap must lie within ± margin, with its whole interval."""

    margin: Decimal
    references: Count
    metrics: list[Comparison]
    attacks: list[Comparison]
    smallest_detectable: Text


class Retired(Strict):
    """A file that was trained on erased records, or derives from one: to be wiped."""

    path: Text
    kind: Text
    sha256: Hash


class Process(Strict):
    """When, with what, on what."""

    started: Time
    finished: Time
    audited: Time
    commit: Text | None
    changed: bool | None
    versions: dict[Text, Text]
    device: Text


class Receipt(Strict):
    """All that is signed, and the signature. Order of the file's members is free."""

    schema_: Literal["sparsekit.unlearning.receipt/1"] = Field(alias="schema")
    number: Annotated[int, Field(ge=1, le=signing.LARGEST)]
    previous_sha256: Hash | None
    requests: Annotated[list[Request], Field(min_length=1)]
    data: Data
    before: File
    after: File
    mask: Mask
    method: Method
    audit: Audit
    level: Level
    verdict: Text
    retired: list[Retired]
    process: Process
    out_of_scope: Annotated[list[Text], Field(min_length=1)]
    signature: Signature
