# SPDX-License-Identifier: Apache-2.0
"""Which of the library's GPU architectures a compute capability is; the library decides alike (src/plan/table.cpp). Imports
nothing: doctor asks before torch is there. Must not go here: what an architecture can do.
"""

from __future__ import annotations

_KNOWN = [(7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (10, 3), (11, 0), (12, 0), (12, 1)]


def architecture_of_capability(major: int, minor: int) -> str:
    """(9, 0) -> "sm90a". A GPU that came later is its generation's newest earlier member, and beyond the last generation
    what the newest PTX is for; a text that the library refuses where there is neither."""
    # sm_90a's machine code is for that GPU alone
    earlier = [known for known in _KNOWN if known[0] == major and known[1] <= minor and known[0] != 9]
    if (major, minor) == (9, 0):
        return "sm90a"
    if earlier:
        major, minor = earlier[-1]
    elif major > _KNOWN[-1][0]:
        major, minor = 12, 0
    return f"sm{major}{minor}"
