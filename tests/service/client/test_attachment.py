"""A session's way back to the server: only the ways that there are."""

from __future__ import annotations

from itertools import product

import pytest

from streamlstm.service.client.attachment import Attachment, checked

ATTACHED, DETACHED, PAUSED, LOBBY, ASKED = Attachment
WAYS = {
    *((ATTACHED, DETACHED), (DETACHED, PAUSED), (DETACHED, LOBBY), (PAUSED, LOBBY)),
    *((PAUSED, DETACHED), (LOBBY, ASKED), (ASKED, LOBBY), (ASKED, DETACHED)),
    *((where, ATTACHED) for where in (DETACHED, PAUSED, LOBBY, ASKED)),
}


@pytest.mark.parametrize(("before", "after"), list(product(Attachment, Attachment)))
def test_there_is_no_other_way(before, after):
    if (before, after) in WAYS:
        assert checked(before, after) is after
    else:
        with pytest.raises(AssertionError, match=f"{before.name} can't become {after.name}"):
            checked(before, after)
