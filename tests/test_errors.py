"""The message of a user's mistake, and its way between processes."""

import pickle

from mental_r1_jax.errors import UserError


def test_message_is_one_paragraph_with_all_four_parts():
    error = UserError(what="No set 'X'", expected="A or B", got="'X'", remedy="Mend data.sets.")
    assert str(error) == "No set 'X'. Expected A or B. Got 'X'. Mend data.sets."


def test_empty_parts_are_left_out():
    assert str(UserError(what="Really?", expected="", got="", remedy="Stop")) == "Really? Stop."


def test_survives_pickling():
    error = UserError(what="a", expected="b", got="c", remedy="d")
    again = pickle.loads(pickle.dumps(error))
    assert (again.what, again.expected, again.got, again.remedy) == ("a", "b", "c", "d")
    assert str(again) == str(error)
