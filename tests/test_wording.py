"""Numbers as people read them."""

from __future__ import annotations

import pytest

from streamlstm.wording import counted, lasting, reason, refusal, sized


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        (counted(1, "input"), "1 input"),
        (counted(0, "input"), "0 inputs"),
        (counted(1234, "event"), "1,234 events"),
        (sized(640), "640 bytes"),
        (sized(352_100), "352.1 kB"),
        (sized(1_250_000_000), "1.2 GB"),
        (lasting(4.25), "4.2 s"),
        (lasting(61), "1 min 1 s"),
        (lasting(12_000), "3 h 20 min"),
        (lasting(200_000), "2 d 7 h"),
        (reason(FileNotFoundError(2, "No such file", "a")), "No such file"),
        (reason(OSError("just a sentence")), "just a sentence"),
        (refusal(OSError("just a sentence")), "just a sentence"),
        (refusal(FileNotFoundError(2, "x", "a.csv")), "a.csv can't be read: there is no such file"),
        (refusal(IsADirectoryError(21, "x", "a")), "a can't be read: it is a folder"),
        (refusal(OSError(28, "x")), "a file or stdout can't be written: no space is left"),
        (refusal(PermissionError(13, "Not yours", "a")), "a can't be used: Not yours"),
    ],
)
def test_it_reads_well(said, wanted):
    assert said == wanted
