from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lotlip.errors import ConfigError, TrackingError
from lotlip_platform.alias_history import (
    HISTORY_TAG,
    AliasHistory,
    Change,
    OvertakenError,
    check_reason,
    new_history,
    previous,
)
from lotlip_platform.history_table import history_rows, show_history, strays
from lotlip_platform.tracking import Server, connect

ALIAS = "champion"


@pytest.fixture
def server(mlflow_server: str) -> Server:
    return connect(mlflow_server)


@pytest.fixture
def name(server: Server, request: pytest.FixtureRequest) -> Iterator[str]:
    """A registered model with five versions, made by other tools than ours."""
    name = f"aliases-{request.node.name[:60]}"
    server.client.create_registered_model(name)
    for _ in range(5):
        server.client.create_model_version(name, "s3://anywhere/model")
    yield name
    server.client.delete_registered_model(name)


def move(history: AliasHistory, version: int, action="promote", because="it is better") -> Change:
    return history.move(
        ALIAS,
        version,
        action=action,
        because=because,
        known=history.changes(ALIAS),
        before=history.version(ALIAS),
    )


def test_each_change_is_kept_with_its_reason(server: Server, name: str) -> None:
    history = AliasHistory(server, name)
    assert history.all_changes() == []
    assert history.version(ALIAS) == 0
    move(history, 2, because="the first")
    move(history, 3, because="ein „besseres“ 模型")
    move(history, 2, action="rollback", because="it was worse")
    seen = AliasHistory(server, name)  # by somebody else
    told = [(c.number, c.action, c.before, c.after, c.because) for c in seen.changes(ALIAS)]
    assert told == [
        (1, "promote", 0, 2, "the first"),
        (2, "promote", 2, 3, "ein „besseres“ 模型"),
        (3, "rollback", 3, 2, "it was worse"),
    ]
    assert all(change.is_done and "@" in change.who for change in seen.changes(ALIAS))
    assert seen.version(ALIAS) == 2
    assert strays(seen.all_changes(), {ALIAS: 2}) == []
    assert len({len(row) for row in history_rows(seen.all_changes())}) == 1


def test_aliases_have_their_own_numbers(server: Server, name: str) -> None:
    history = AliasHistory(server, name)
    move(history, 1)
    history.move("candidate", 4, action="register", because="new", known=(), before=0)
    move(history, 2)
    assert [change.number for change in history.changes(ALIAS)] == [1, 2]
    assert [change.number for change in history.changes("candidate")] == [1]


def test_mlflow_lets_nobody_rewrite_what_is_recorded(server: Server, name: str) -> None:
    history = AliasHistory(server, name)
    move(history, 1)
    with pytest.raises(Exception, match="Changing param values is not allowed"):
        server.client.log_param(history.run_id, f"{ALIAS}.0001", "{}")
    assert history.changes(ALIAS)[0].after == 1


def test_of_two_who_move_an_alias_at_once_exactly_one_wins(server: Server, name: str) -> None:
    move(AliasHistory(server, name), 1)
    people = [AliasHistory(connect(server.uri), name) for _ in range(4)]
    known = people[0].changes(ALIAS)
    barrier = threading.Barrier(len(people))
    ends: dict[int, Change | OvertakenError] = {}

    def promote(version: int) -> None:
        barrier.wait()
        history = people[version - 2]
        try:
            ends[version] = history.move(
                ALIAS, version, action="promote", because="mine", known=known, before=1
            )
        except OvertakenError as error:
            ends[version] = error

    threads = [threading.Thread(target=promote, args=(version,)) for version in (2, 3, 4, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = [version for version, end in ends.items() if isinstance(end, Change)]
    losers = [str(end) for end in ends.values() if isinstance(end, OvertakenError)]
    assert len(losers) == 3
    assert all(f"was moved from version 1 to {winner} by" in text for text in losers)
    history = AliasHistory(server, name)
    assert history.version(ALIAS) == winner
    assert [change.after for change in history.changes(ALIAS)] == [1, winner]


def test_of_two_who_begin_a_history_at_once_the_record_keeps_the_one_who_won(
    server: Server, name: str
) -> None:
    slow, fast = AliasHistory(server, name), AliasHistory(server, name)  # neither sees a history
    move(fast, 1)
    with pytest.raises(OvertakenError, match="was moved from version 0 to 1"):
        slow.move(ALIAS, 2, action="promote", because="first, too", known=(), before=0)
    other = AliasHistory(server, name)
    other.run_id = new_history(server, name)  # as one does who did not see the tag in time
    with pytest.raises(OvertakenError, match=r"began the history of .* at the same time"):
        other.move(ALIAS, 3, action="promote", because="first, too", known=(), before=0)
    assert AliasHistory(server, name).version(ALIAS) == 1


def test_the_same_words_at_the_same_second_are_still_two_people(server: Server, name: str) -> None:
    history = AliasHistory(server, name)
    history.move(ALIAS, 1, action="promote", because="same", known=(), before=0)
    with pytest.raises(OvertakenError):
        history.move(ALIAS, 1, action="promote", because="same", known=(), before=0)


def interrupted(history: AliasHistory, version: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the record and the alias."""
    with monkeypatch.context() as patch:
        patch.setattr(history, "_apply", lambda change: (_ for _ in ()).throw(SystemExit))
        with pytest.raises(SystemExit):
            move(history, version)


def test_an_interrupted_change_is_finished_by_the_next(
    server: Server, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = AliasHistory(server, name)
    move(history, 1)
    interrupted(history, 2, monkeypatch)
    later = AliasHistory(server, name)
    assert later.version(ALIAS) == 1  # the old state, not none
    assert not later.changes(ALIAS)[-1].is_done
    (line,) = strays(later.all_changes(), {ALIAS: 1})
    assert "interrupted" in line
    finished = later.finish_interrupted(ALIAS)
    assert finished is not None
    assert finished.after == later.version(ALIAS) == 2
    assert later.finish_interrupted(ALIAS) is None


def test_a_change_that_cannot_be_finished_is_void_and_blocks_nothing(
    server: Server, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = AliasHistory(server, name)
    move(history, 1)
    interrupted(history, 2, monkeypatch)
    server.client.delete_model_version(name, "2")
    assert history.finish_interrupted(ALIAS) is not None
    assert history.version(ALIAS) == 1
    assert [change.is_void for change in history.changes(ALIAS)] == [False, True]
    assert strays(history.all_changes(), {ALIAS: 1}) == []
    move(history, 3)
    assert previous(history.changes(ALIAS), 3, range(9)) == 1


def test_a_parameter_of_another_hand_is_told(server: Server, name: str) -> None:
    history = AliasHistory(server, name)
    move(history, 1)
    server.client.log_param(history.run_id, f"{ALIAS}.0002", "x")
    with pytest.raises(TrackingError, match=r"parameter champion\.0002 .* was not written by lot"):
        history.changes(ALIAS)


def test_one_who_was_paused_does_not_undo_what_came_later(server: Server, name: str) -> None:
    slow = AliasHistory(server, name)
    first = move(slow, 1)
    move(AliasHistory(server, name), 2)
    slow._apply(first)  # it wakes up, and moves the alias for its own change at last
    assert slow.version(ALIAS) == 2


def test_moves_by_other_means_are_told(server: Server, name: str) -> None:
    history = AliasHistory(server, name)
    move(history, 1)
    server.client.set_registered_model_alias(name, ALIAS, "4")
    server.client.set_registered_model_alias(name, "staging", "2")
    aliases = {"champion": 4, "staging": 2}
    lines = strays(history.all_changes(), aliases)
    assert lines == [
        "champion: moved to v4 by other means than lotlip",
        "staging: moved to v2 by other means than lotlip",
    ]
    change = move(history, 3)
    assert change.before == 4
    assert previous(history.changes(ALIAS), 3, range(9)) == 4


def test_a_deleted_history_is_told(server: Server, name: str) -> None:
    history = AliasHistory(server, name)
    move(history, 1)
    server.client.delete_run(history.run_id)
    with pytest.raises(TrackingError, match="was deleted: restore it in MLflow"):
        move(history, 2)
    assert history.version(ALIAS) == 1


def test_an_unknown_model_is_told(server: Server) -> None:
    with pytest.raises(TrackingError, match="has no registered model nothing"):
        AliasHistory(server, "nothing")


def test_a_reason_is_needed() -> None:
    for nothing in ("", "  \n"):
        with pytest.raises(ConfigError, match="--because is empty"):
            check_reason(nothing)
    with pytest.raises(ConfigError, match="2001 letters"):
        check_reason("x" * 2001)
    assert check_reason(" two\nlines ") == "two lines"


def change(number: int, action, before: int, after: int) -> Change:
    return Change(
        alias=ALIAS,
        number=number,
        action=action,
        before=before,
        after=after,
        who="x",
        when="2026-01-01T00:00:00Z",
        because="y",
    )


@given(st.lists(st.integers(0, 6), max_size=30))
def test_rolling_back_undoes_promotions_one_by_one(steps: list[int]) -> None:
    """0 rolls back, any other number promotes that version."""
    stack: list[int] = []
    changes: list[Change] = []
    for step in steps:
        now = stack[-1] if stack else 0
        if step and step != now:
            changes.append(change(len(changes) + 1, "promote", now, step))
            stack.append(step)
        elif not step:
            expected = stack[-2] if len(stack) > 1 else 0
            assert previous(changes, now, range(9)) == expected
            if expected:
                changes.append(change(len(changes) + 1, "rollback", now, expected))
                stack.pop()
    assert previous(changes, stack[-1] if stack else 0, range(9)) == (
        stack[-2] if len(stack) > 1 else 0
    )


def test_a_move_by_other_means_is_what_a_rollback_undoes_first() -> None:
    changes = [change(1, "promote", 0, 1), change(2, "promote", 1, 2)]
    assert previous(changes, 5, range(9)) == 2
    assert previous([*changes, change(3, "rollback", 5, 2)], 2, range(9)) == 1


def test_versions_that_are_gone_are_passed_over() -> None:
    changes = [change(n, "promote", n - 1, n) for n in (1, 2, 3, 4)]
    assert previous(changes, 4, {1, 4}) == 1
    assert previous(changes, 4, {4}) == 0


def test_the_history_tag_is_the_models(server: Server, name: str) -> None:
    history = AliasHistory(server, name)
    move(history, 1)
    assert server.client.get_registered_model(name).tags[HISTORY_TAG] == history.run_id


def test_mlflows_page_of_the_run_shows_the_changes_the_newest_first(server: Server, name: str):
    history = AliasHistory(server, name)
    move(history, 2, because="the | first")
    move(history, 3, because="better")
    show_history(server, history)
    note = server.client.get_run(history.run_id).data.tags["mlflow.note.content"]
    head, rule, newest, oldest = note.splitlines()
    assert head.startswith("| when | who | what |")
    assert set(rule) == set("| -")
    assert newest.endswith("| champion | v2 | v3 |  | better |")
    assert oldest.endswith("| champion | none | v2 |  | the \\| first |")


def test_a_long_history_is_shown_as_far_as_it_fits(server: Server, name: str) -> None:
    history = AliasHistory(server, name)
    for version in (1, 2, 3, 4):
        move(history, version, because=f"{version}" * 1500)
    show_history(server, history)
    note = server.client.get_run(history.run_id).data.tags["mlflow.note.content"]
    assert len(note) <= 5000
    assert "4444" in note
    assert "1111" not in note
