"""Known vulnerabilities among the pinned packages: fails on findings, and says so where nobody could be asked."""

from __future__ import annotations

import json
import subprocess
import sys

COMMAND = [
    sys.executable, "-m", "pip_audit", "-r", "constraints.txt", "--no-deps", "--disable-pip", "--format", "json",
    "--progress-spinner", "off", "--timeout", "20",
]  # fmt: skip
UNREACHABLE = (
    "ConnectionError", "ConnectTimeout", "ReadTimeout", "ProxyError", "SSLError", "ServiceError", "Failed to resolve",
    "Connection refused",
)  # fmt: skip


def main() -> int:
    """The exit code: 0 where nothing was found or nobody could be asked, 1 on findings and on any other failure."""
    result = subprocess.run(COMMAND, capture_output=True, text=True, check=False)
    try:
        packages = json.loads(result.stdout)["dependencies"]
    except (ValueError, KeyError):
        if not any(word in result.stderr for word in UNREACHABLE):
            print(f"audit: failed\n{result.stderr[-2000:]}")
            return 1
        packages = []
    asked = [package for package in packages if "skip_reason" not in package]
    found = [(package["name"], entry["id"]) for package in asked for entry in package["vulns"]]
    for name, entry in found:
        print(f"  {name}: {entry}")
    if not asked:
        print("audit: NOT DONE, the vulnerability service could not be asked; run make audit where it can be reached")
    else:
        print(f"audit: {len(found)} findings in {len(asked)} packages, {len(packages) - len(asked)} not known there")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
