"""What both SDK scripts share: run each check, print a line for each, fail at the end if any failed."""
import sys
import traceback

CHECKS = []


def check(*kinds):
    """Marks a check; `kinds` are the engines it can run against (all when none is named)."""
    def mark(function):
        CHECKS.append((function, kinds))
        return function
    return mark


def raises(error, call):
    """The exception `call` must raise."""
    try:
        call()
    except error as caught:
        return caught
    raise AssertionError(f"{error.__name__} was not raised")


def run(client, kind):
    failed = skipped = 0
    for function, kinds in CHECKS:
        if kinds and kind not in kinds:
            skipped += 1
            continue
        try:
            function(client)
            print("ok  ", function.__name__)
        except Exception:
            failed += 1
            print("FAIL", function.__name__)
            traceback.print_exc()
    print(f"{len(CHECKS) - failed - skipped} passed, {failed} failed, {skipped} not for {kind}")
    sys.exit(1 if failed else 0)
