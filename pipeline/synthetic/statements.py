"""The content of a caption as a value that can be compared with scenes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from pipeline.synthetic.scenes import MUTUAL_ACTIONS, Event, Scene, Thing


@dataclass(frozen=True, kw_only=True, order=True)
class Mention:
    """A thing as a caption names it; attributes that are not named are empty."""

    colour: str
    shape: str
    size: str = ""


@dataclass(frozen=True, kw_only=True, order=True)
class Claim:
    """An event as a caption names it: who does what, and in which half of the clip if there are two events."""

    action: str
    actors: tuple[tuple[str, str], ...]
    """(colour, shape) of each; sorted if their roles are interchangeable."""
    phase: str = ""
    direction: str = ""
    """`left` or `right`, for a chase."""

    def without_direction(self) -> Claim:
        """Return the claim without the direction of a chase."""
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
    """False if the scene has a second thing that the caption does not name."""
    distractors: tuple[Mention, ...] = field(default=(), compare=False)
    """Things that the scene also shows: of a meaning only, which is equal to another that differs in nothing else."""


def meaning_of(scene: Scene) -> Statement:
    """Return the statement that names everything that distinguishes scenes."""
    return Statement(
        mentions=_mentions(scene.things),
        texture=scene.background.texture,
        claims=tuple(sorted(_claim(scene, event) for event in scene.events)),
        distractors=_mentions(scene.distractors),
    )


def _mentions(things: tuple[Thing, ...]) -> tuple[Mention, ...]:
    return tuple(sorted(Mention(colour=t.colour, shape=t.shape, size=t.size) for t in things))


def direction_of(scene: Scene, event: Event) -> str:
    """Return the direction of a chase: from the chaser towards the chased thing. Empty for other events."""
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
    """Return whether the statement about things and background is true of the middle frame of scenes with `meaning`.

    Among distractors any thing may be the one that the statement is about, and no statement names them all.
    """
    if statement.texture not in ("", meaning.texture):
        return False
    if statement.is_complete and not meaning.distractors and len(statement.mentions) != len(meaning.mentions):
        return False
    shown = (*meaning.mentions, *meaning.distractors)
    return all(any(_may_be(mention, seen) for seen in shown) for mention in statement.mentions)


def agrees(statement: Statement, meaning: Statement) -> bool:
    """Return whether the whole statement is true of scenes with `meaning`."""
    held = {claim for full in meaning.claims for claim in (full, full.without_direction())}
    same_number = len(statement.claims) == len(meaning.claims)
    return same_number and set(statement.claims) <= held and agrees_with_frame(statement, meaning)


def _may_be(mention: Mention, seen: Mention) -> bool:
    return (mention.colour, mention.shape) == (seen.colour, seen.shape) and mention.size in ("", seen.size)
