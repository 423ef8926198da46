"""The command `verify`, without torch and without the data.

python -m apps.unlearning.receipt receipts/0001.json
sparsekit unlearning verify receipts/0001.json
"""

import sys
from pathlib import Path

from apps.common.output import JSON, tell
from apps.common.receipt import printable, verify
from sparsekit.cli import Parser


def verify_command(argv: list[str]) -> int:
    """Check a receipt's signature, fields and level, and with --files the models.

    sparsekit unlearning verify service/receipts/0001.json --files service
    """
    parser = Parser(
        prog="sparsekit unlearning verify",
        description="Checks a receipt: signature, fields, sense, and if asked files.",
    )
    parser.add_argument("file", type=Path, help="the receipt")
    parser.add_argument("--key", type=Path, help="public key; default: beside the file")
    parser.add_argument("--files", type=Path, help="the service's folder")
    parser.add_argument(
        "--wiped", action="store_true", help="with --files: no retired file is there"
    )
    parser.add_argument("--previous", type=Path, help="the receipt before this one")
    parser.add_argument("--request", help="id of a request that it must answer")
    parser.add_argument("--json", action="store_true", help="an object, for a program")
    try:
        args = parser.parse_args(argv)
        if args.wiped and args.files is None:
            parser.error("--wiped needs --files FOLDER")
    except ValueError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    if args.json:
        JSON.set(True)
    try:
        receipt, checked = verify(
            args.file, args.key, args.files, args.wiped, args.previous, args.request
        )
    except OSError as error:  # not there, or not to be read
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    except ValueError as error:
        why = printable(str(error))
        print(f"NOT VALID  {args.file}: {why}", file=sys.stderr)
        if JSON.get():
            tell({"valid": False, "file": args.file, "why": why})
        return 1
    data = receipt.data
    names = [printable(item.request) for item in receipt.requests]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    lines = [
        *checked,
        f"requests: {', '.join(names[:3])}{more}",
        f"records: {data.records_erased} of {data.records_before}",
        f"verdict: {printable(receipt.verdict)}",
        f"out of scope: {len(receipt.out_of_scope)} points, in the receipt",
    ]
    if args.key is None:
        lines.append(
            "The key lay beside the receipt: compare it with the published one."
        )
    content = {
        "valid": True, "file": args.file, "checked": checked, "requests": names,
        "level": receipt.level, "verdict": receipt.verdict,
        "records_erased": data.records_erased, "records_before": data.records_before,
    }  # fmt: skip
    tell(content, f"VALID  {args.file}", *(f"  {line}" for line in lines))
    return 0


if __name__ == "__main__":
    sys.exit(verify_command(sys.argv[1:]))
