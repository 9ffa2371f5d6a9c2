"""Specs and defaults: what is allowed, what is not, and that everything wrong is said at once, before anything starts."""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from typing import Any

import pytest

from tests.supervisor.conformance.cast import VIRTUAL_TIME, Extra, Part, Play, Walker, soon, statuses
from understudy import ActorStopped, Child, InvalidDefinition, Supervisor, System
from understudy.supervisor.member import is_normal
from understudy.supervisor.specs import RestartType, Strategy

pytestmark = VIRTUAL_TIME
ANY: Any = None
NAN = math.nan


def refused(make: Any, *args: Any, **settings: Any) -> str:
    """Return what is said about a spec that is wrong."""
    with pytest.raises(InvalidDefinition) as caught:
        make(*args, **settings)
    return str(caught.value)


# --- defaults ------------------------------------------------------------------------------------------------------


async def test_supervisor_has_the_defaults_of_the_reference() -> None:
    parameters = inspect.signature(Supervisor).parameters

    assert {name: each.default for name, each in parameters.items() if each.kind is each.KEYWORD_ONLY} == {
        "strategy": "one_for_one",
        "max_restarts": 3,
        "within_s": 5.0,
        "auto_shutdown": "never",
        "policy": None,
        "on_exceeded": None,
        "restart": "permanent",
        "shutdown_s": math.inf,
        "significant": False,
    }
    assert [name for name, each in parameters.items() if each.kind is not each.KEYWORD_ONLY] == ["name", "children"]


async def test_child_has_the_defaults_of_the_reference() -> None:
    child = Child(Part, "a")

    assert (child.restart, child.shutdown_s, child.significant) == ("permanent", 5.0, False)


async def test_root_is_a_supervisor_with_the_defaults(play: Play) -> None:
    async with play.system(Child(Part, "a")) as system:
        root = system.picture()

        assert (root.role, root.name, root.kind) == ("supervisor", "root", "one_for_one")
        assert (root.max_restarts, root.within_s) == (3, 5.0)


@pytest.mark.parametrize("shutdown_s", [0, 0.0, 0.25, 5, 1e9, math.inf])
async def test_shutdown_time_is_anything_from_zero_to_inf(shutdown_s: float) -> None:
    assert Child(Part, "a", shutdown_s=shutdown_s).shutdown_s == shutdown_s
    assert Supervisor("s", [], shutdown_s=shutdown_s).shutdown_s == shutdown_s


@pytest.mark.parametrize("strategy", ["one_for_one", "one_for_all", "rest_for_one"])
async def test_there_are_three_strategies(strategy: Strategy) -> None:
    assert Supervisor("s", [], strategy=strategy).strategy == strategy


async def test_class_as_a_child_is_a_template_which_is_one_child_with_any_number_of_actors(play: Play) -> None:
    async with play.system(Extra, Child(Part, "a")) as system:
        for number in range(50):
            await system.actor(Extra, str(number)).hear("x")

        assert await statuses(system) == {"extra": "running", "a": "running"}
        assert [each.role for each in await system.supervisor().which_children()] == ["template", "child"]


# --- restart types -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", ["normal", "shutdown", "shutdown()", "shutdown(done)", "shutdown(a\nb(c))"])
async def test_these_reasons_are_normal(reason: str) -> None:
    assert is_normal(reason)


@pytest.mark.parametrize(
    "reason",
    ["", "Normal", "normal ", "normal\n", " shutdown", "shutdown(", "shutdown done", "shutdown(x) y", "killed"],
)
async def test_all_other_reasons_are_abnormal(reason: str) -> None:
    assert not is_normal(reason)


@pytest.mark.parametrize("restart", ["permanent", "transient"])
async def test_permanent_and_transient_children_that_fail_are_restarted(play: Play, restart: RestartType) -> None:
    async with play.system(Child(Part, "a", restart=restart)) as system:
        play.fail("a hears x")

        assert await system.actor(Part, "a").hear("x") == ["x"]

        assert play.moves() == ["start a", "stop a", "start a"]


async def test_temporary_child_that_fails_is_forgotten_and_refuses_its_mail(play: Play) -> None:
    async with play.system(Child(Part, "a", restart="temporary"), Child(Part, "b")) as system:
        play.fail("a hears x")

        with pytest.raises(ActorStopped, match="part/a has stopped"):
            await system.actor(Part, "a").hear("x")

        await soon()
        assert await statuses(system) == {"b": "running"}
        assert play.moves() == ["start a", "start b", "stop a"]
        with pytest.raises(ActorStopped, match="refused and not stored"):
            await system.actor(Part, "a").hear.tell("y")


async def test_id_of_a_temporary_child_that_ended_is_free_for_another_spec(play: Play) -> None:
    async with play.system(Child(Part, "a", restart="temporary")) as system:
        await system.actor(Part, "a").leave("normal")
        await soon()

        info = await system.supervisor().start_child(Child(Part, "a", restart="transient", shutdown_s=1.0))

        assert (info.status, info.restart) == ("running", "transient")
        assert await system.actor(Part, "a").hear("x") == ["x"]


async def test_transient_child_that_ended_normally_is_kept_not_running_and_can_be_started(play: Play) -> None:
    async with play.system(Child(Part, "a", restart="transient")) as system:
        await system.actor(Part, "a").leave("shutdown(enough)")
        await soon()
        assert await statuses(system) == {"a": "stopped"}

        await system.supervisor().restart_child("a")

        assert await statuses(system) == {"a": "running"}
        assert play.moves() == ["start a", "stop a", "start a"]


# --- what is refused -----------------------------------------------------------------------------------------------

STRATEGIES = "must be one of 'one_for_one', 'one_for_all', 'rest_for_one'"
COUNT = "expected a whole number, 0 or more"
SECONDS = "expected seconds above 0, and finite"
SHUTDOWN = "expected seconds, 0 to inf"
RESTARTS = "must be one of 'permanent', 'transient', 'temporary'"


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("strategy", "one-for-one", STRATEGIES),
        ("strategy", "simple_one_for_one", STRATEGIES),
        ("strategy", None, STRATEGIES),
        ("strategy", ["one_for_one"], STRATEGIES),
        ("max_restarts", -1, COUNT),
        ("max_restarts", 1.0, COUNT),
        ("max_restarts", True, COUNT),
        ("max_restarts", "3", COUNT),
        ("max_restarts", math.inf, COUNT),
        ("within_s", 0, SECONDS),
        ("within_s", 0.0, SECONDS),
        ("within_s", -1.0, SECONDS),
        ("within_s", math.inf, SECONDS),
        ("within_s", NAN, SECONDS),
        ("within_s", "5", SECONDS),
        ("within_s", True, SECONDS),
        ("auto_shutdown", "always", "must be one of 'never', 'any_significant', 'all_significant'"),
        ("on_exceeded", "stop", "must be one of 'suspend', 'escalate'"),
        ("policy", "restart", "expected Policy(on(...), ...)"),
        ("restart", "always", RESTARTS),
        ("shutdown_s", -0.5, SHUTDOWN),
        ("shutdown_s", NAN, SHUTDOWN),
        ("shutdown_s", None, SHUTDOWN),
        ("shutdown_s", False, SHUTDOWN),
        ("significant", 1, "expected True or False"),
    ],
)
async def test_setting_of_a_supervisor_that_is_wrong_is_named_with_its_value_and_what_is_allowed(
    field: str, value: object, allowed: str
) -> None:
    said = refused(Supervisor, "pool", [Extra], **{field: value})

    assert "Supervisor 'pool'" in said
    assert field in said
    assert repr(value) in said
    assert allowed in said


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("restart", "never", RESTARTS),
        ("restart", None, RESTARTS),
        ("shutdown_s", -1, SHUTDOWN),
        ("shutdown_s", NAN, SHUTDOWN),
        ("shutdown_s", "brutal_kill", SHUTDOWN),
        ("significant", "yes", "expected True or False"),
        ("id", "", "expected a text that is not empty"),
        ("id", 7, "expected a text that is not empty"),
        ("actor", object, "expected an actor class"),
        ("actor", "part", "expected an actor class"),
    ],
)
async def test_setting_of_a_child_that_is_wrong_is_named_with_its_value_and_what_is_allowed(
    field: str, value: object, allowed: str
) -> None:
    settings: dict[str, Any] = {"actor": Part, "id": "a", field: value}

    said = refused(Child, **settings)

    assert field in said
    assert repr(value) in said
    assert allowed in said


@pytest.mark.parametrize("value", [None, "", 3, b"pool"])
async def test_name_of_a_supervisor_is_a_text(value: object) -> None:
    assert f"name={value!r}: expected a text that is not empty" in refused(Supervisor, value, [])


@pytest.mark.parametrize("value", [None, "Part", 3, Part])
async def test_children_are_a_list(value: object) -> None:
    assert f"children={value!r}: expected a list of actor classes" in refused(Supervisor, "pool", value)


@pytest.mark.parametrize("value", [object, 42, "part", None, Part.hear])
async def test_list_of_children_takes_specs_only(value: object) -> None:
    said = refused(Supervisor, "pool", [Extra, value])

    assert "it takes actor classes, tools, Child(...) and Supervisor(...)" in said
    assert repr(value) in said


class Cousin(Part, kind="cousin"):
    pass


class Twin(Part, kind="extra"):
    """Another class of the kind that `Extra` has."""


@pytest.mark.parametrize(
    "children",
    [
        pytest.param([Child(Part, "extra"), Child(Part, "extra")], id="two children"),
        pytest.param([Child(Part, "extra"), Child(Cousin, "extra")], id="children of two classes"),
        pytest.param([Child(Part, "extra"), Supervisor("extra", [])], id="a child and a supervisor"),
        pytest.param([Supervisor("extra", []), Supervisor("extra", [Walker])], id="two supervisors"),
        pytest.param([Extra, Child(Part, "extra")], id="a template and a child"),
        pytest.param([Supervisor("extra", []), Extra], id="a supervisor and a template"),
        pytest.param([Extra, Extra], id="a template twice"),
    ],
)
async def test_two_children_with_one_id_are_refused(children: list[Any]) -> None:
    said = refused(Supervisor, "pool", children)

    assert "Supervisor 'pool'" in said
    assert "two children have the id 'extra'" in said


async def test_two_classes_of_one_kind_are_refused_with_both_names() -> None:
    assert "Twin and Extra have one kind, 'extra'" in refused(Supervisor, "pool", [Extra, Twin])


async def test_one_id_under_two_supervisors_is_fine_as_long_as_it_is_not_one_actor(play: Play) -> None:
    tree = [Supervisor("left", [Child(Part, "a")]), Supervisor("right", [Child(Cousin, "a")])]

    async with play.system(*tree) as system:
        assert await statuses(system, "left") == await statuses(system, "right") == {"a": "running"}


async def test_significant_and_permanent_contradict_each_other_and_are_named_together() -> None:
    for make in (lambda: Child(Part, "a", significant=True), lambda: Supervisor("inner", [], significant=True)):
        assert "significant=True with restart='permanent'" in refused(make)


@pytest.mark.parametrize("restart", ["transient", "temporary"])
async def test_significant_child_under_auto_shutdown_never_is_refused_and_both_are_named(restart: RestartType) -> None:
    for child in (
        Child(Part, "a", restart=restart, significant=True),
        Supervisor("a", [], restart=restart, significant=True),
    ):
        said = refused(Supervisor, "pool", [child])
        assert "child 'a' is significant=True with auto_shutdown='never'" in said
        assert "'any_significant' or 'all_significant'" in said
        assert Supervisor("pool", [child], auto_shutdown="any_significant").children == (child,)


async def test_template_cannot_be_significant() -> None:
    assert "id=None: expected a text" in refused(Child, Extra, ANY, restart="transient", significant=True)


async def test_everything_that_is_wrong_with_a_supervisor_is_said_at_once() -> None:
    said = refused(
        Supervisor,
        "",
        [
            Child(Part, "a"),
            Child(Cousin, "a"),
            Child(Part, "s", restart="transient", significant=True),
            Extra,
            Twin,
            42,
        ],
        strategy="all",
        max_restarts=-2,
        within_s=math.inf,
        auto_shutdown="never",
        on_exceeded="die",
        policy=7,
        restart="sometimes",
        shutdown_s=-3,
        significant=None,
    )

    for each in (
        "name=''",
        "strategy must be one of",
        "'all'",
        "max_restarts=-2",
        "within_s=inf",
        "on_exceeded must be one of",
        "'die'",
        "policy=7",
        "restart must be one of",
        "'sometimes'",
        "shutdown_s=-3",
        "significant=None",
        "two children have the id 'a'",
        "child 's' is significant=True with auto_shutdown='never'",
        "have one kind, 'extra'",
        "got 42",
    ):
        assert each in said


async def test_everything_that_is_wrong_with_a_child_is_said_at_once() -> None:
    said = refused(Child, int, "", restart="once", shutdown_s=-1.0, significant="no")

    for each in ("actor=<class 'int'>", "id=''", "'once'", "shutdown_s=-1.0", "significant='no'"):
        assert each in said


# --- the whole tree, before anything -------------------------------------------------------------------------------


def deep(*children: Any) -> Supervisor:
    return Supervisor("outer", [Supervisor("inner", children)])


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        pytest.param(
            [Child(Part, "a"), deep(Child(Part, "a"))], "static child part/a is in the tree twice", id="a static child"
        ),
        pytest.param([Extra, deep(Extra)], "template 'extra' is in the tree twice", id="a template"),
        pytest.param([Extra, deep(Twin)], "template 'extra' is in the tree twice", id="a kind"),
        pytest.param([deep(Supervisor("outer", []))], "supervisor 'outer' is in the tree twice", id="a supervisor"),
        pytest.param([Supervisor("root", [])], "supervisor 'root' is in the tree twice", id="the root"),
    ],
)
async def test_what_stands_in_the_tree_twice_is_refused_and_both_places_are_named(
    tmp_path: Path, tree: list[Any], said: str
) -> None:
    assert said in refused(System, tmp_path / "tree.db", tree)


async def test_everything_that_is_wrong_with_a_tree_is_said_at_once(tmp_path: Path) -> None:
    tree = [Child(Part, "a"), Extra, Supervisor("one", []), deep(Extra, Child(Part, "a"), Supervisor("one", []))]

    said = refused(System, tmp_path / "tree.db", tree)

    for each in ("static child part/a", "template 'extra'", "supervisor 'one'"):
        assert f"{each} is in the tree twice" in said


async def test_tree_that_is_wrong_starts_and_stores_nothing(tmp_path: Path, play: Play) -> None:
    path = tmp_path / "tree.db"

    refused(System, path, [Child(Part, "a"), deep(Child(Part, "b"), Child(Part, "a"))], resources=[play])

    assert play.lines == []
    assert list(tmp_path.iterdir()) == []


async def test_child_that_is_wrong_is_refused_by_start_child_and_nothing_is_started_or_stored(play: Play) -> None:
    tree = Supervisor("pool", [Child(Part, "a"), Extra])
    async with play.system(tree, Walker) as system:
        pool = system.supervisor("pool")
        before = await pool.which_children(), system.picture()
        play.forget()

        for spec, said in (
            (Child(Part, "b", restart="temporary", significant=True), "significant=True with auto_shutdown='never'"),
            (Walker, "in the tree already, under 'root'"),
            (Supervisor("inner", [Child(Cousin, "c"), Child(Part, "a")]), "in the tree already, under 'pool'"),
            (Supervisor("inner", [Supervisor("pool", [])]), "in the tree already, under 'root'"),
            (
                Supervisor("inner", [Child(Cousin, "c"), Supervisor("deeper", [Child(Cousin, "c")])]),
                "static child cousin/c is in the tree twice",
            ),
        ):
            with pytest.raises(InvalidDefinition) as caught:
                await pool.start_child(spec)
            assert said in str(caught.value)

        assert (await pool.which_children(), system.picture()) == before
        assert play.lines == []
        assert [each.ref async for each in system.actors(Cousin)] == []


@pytest.mark.parametrize("value", [42, "part", None, object()])
async def test_start_child_takes_specs_only(play: Play, value: Any) -> None:
    async with play.system(Child(Part, "a")) as system:
        with pytest.raises(InvalidDefinition, match="it takes actor classes, tools") as caught:
            await system.supervisor().start_child(value)

        assert repr(value) in str(caught.value)
        assert await statuses(system) == {"a": "running"}


async def test_start_child_says_everything_that_is_wrong_at_once(play: Play) -> None:
    async with play.system(Child(Part, "a"), Extra) as system:
        with pytest.raises(InvalidDefinition) as caught:
            await system.supervisor().start_child(
                Supervisor("new", [Child(Part, "a"), Extra, Supervisor("root", [])], strategy="one_for_all")
            )

        for each in ("'a'", "Extra", "'root'"):
            assert each in str(caught.value)


async def test_list_of_children_may_change_after_the_supervisor_was_made(play: Play) -> None:
    children: list[Any] = [Child(Part, "a")]
    spec = Supervisor("pool", children)
    children.append(Child(Part, "b"))

    async with play.system(spec) as system:
        assert await statuses(system, "pool") == {"a": "running"}
