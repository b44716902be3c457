"""What a caption claims, as a value: the ground on which captions are compared with scenes."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pipeline.synthetic.scenes import MUTUAL_ACTIONS, Event, Scene


@dataclass(frozen=True, kw_only=True, order=True)
class Mention:
    """A thing as named; an empty string stands for what is not named."""

    colour: str
    shape: str
    size: str = ""


@dataclass(frozen=True, kw_only=True, order=True)
class Claim:
    """An event as named: who does what, in which half of the clip when there are two events."""

    action: str
    actors: tuple[tuple[str, str], ...]
    """(colour, shape) of each; sorted where the roles are the same."""
    phase: str = ""
    direction: str = ""
    """`left` or `right`, for a chase."""

    def without_direction(self) -> Claim:
        """The same claim, silent about where a chase goes."""
        return replace(self, direction="")


@dataclass(frozen=True, kw_only=True)
class Statement:
    """The things, the background and the events that a caption names."""

    mentions: tuple[Mention, ...]
    """Sorted."""
    texture: str = ""
    claims: tuple[Claim, ...] = ()
    """Sorted."""
    is_complete: bool = True
    """False where a second thing is in the scene but not in the caption."""


def meaning_of(scene: Scene) -> Statement:
    """The statement that names everything that tells scenes apart."""
    mentions = tuple(sorted(Mention(colour=t.colour, shape=t.shape, size=t.size) for t in scene.things))
    claims = tuple(sorted(_claim(scene, event) for event in scene.events))
    return Statement(mentions=mentions, texture=scene.background.texture, claims=claims)


def direction_of(scene: Scene, event: Event) -> str:
    """Where a chase goes: towards the side of the one that is chased. Empty for other events."""
    if event.action != "chase":
        return ""
    chaser, chased = (scene.things[actor] for actor in event.actors)
    return "right" if chased.x > chaser.x else "left"


def _claim(scene: Scene, event: Event) -> Claim:
    actors = [(scene.things[actor].colour, scene.things[actor].shape) for actor in event.actors]
    return Claim(
        action=event.action,
        actors=tuple(sorted(actors) if event.action in MUTUAL_ACTIONS else actors),
        phase=event.phase if len(scene.events) > 1 else "",
        direction=direction_of(scene, event),
    )


def agrees_with_frame(statement: Statement, meaning: Statement) -> bool:
    """Whether what the statement says about things and background holds in the middle frame of such a scene."""
    if statement.texture not in ("", meaning.texture):
        return False
    if statement.is_complete and len(statement.mentions) != len(meaning.mentions):
        return False
    return all(any(_may_be(mention, seen) for seen in meaning.mentions) for mention in statement.mentions)


def agrees(statement: Statement, meaning: Statement) -> bool:
    """Whether everything that the statement says holds in scenes of this meaning."""
    held = {claim for full in meaning.claims for claim in (full, full.without_direction())}
    same_number = len(statement.claims) == len(meaning.claims)
    return same_number and set(statement.claims) <= held and agrees_with_frame(statement, meaning)


def _may_be(mention: Mention, seen: Mention) -> bool:
    return (mention.colour, mention.shape) == (seen.colour, seen.shape) and mention.size in ("", seen.size)
