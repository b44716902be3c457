"""Scenes of clips: things, events and a background, and the pose of each thing over time.

Lengths are in units of a 64-unit square frame. Time `tau` runs from -5 to 5; at 0, the middle of the clip, every
thing is in its middle state: visible, upright, at its own place and size. So the middle frame never reveals an action.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

FRAME_UNITS = 64.0
TAU_END = 5.0

COLOURS = ("red", "blue", "yellow", "green", "white", "purple", "orange", "black", "pink", "brown")
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "heart", "moon")
TEXTURES = ("striped", "dotted", "checked", "plain", "grainy")
RADIUS_BY_SIZE = {"small": 8.0, "big": 13.0}
SIZES = tuple(RADIUS_BY_SIZE)

DIRECTIONS = ("left", "right", "rise", "fall")
RESIZES = ("grow", "shrink")
REPEATABLE = ("jump", "spin", "blink", "shake")
"""Actions that begin and end in the middle state, so that one can follow another."""
SOLO_ACTIONS = (*DIRECTIONS, *RESIZES, "jump", "spin", "vanish", "appear", "blink", "shake")
JOINT_ACTIONS = ("meet", "part", "chase", "pass")
MUTUAL_ACTIONS = ("meet", "part", "pass")
"""Joint actions in which both things have the same role."""

_TRAVEL = 15.0
_CHASE_TRAVEL = 13.0
_JUMP_HEIGHT = 17.0
_SHAKE_REACH = 5.0
_RESIZE_SHARE = 0.55
_SPIN_PERIOD = 5.0
_BLINK_OFF = (1.5, 3.5)


@dataclass(frozen=True, kw_only=True)
class Thing:
    """A coloured shape in its middle state: centre (`x`, `y`) in frame units, y downwards."""

    colour: str
    shape: str
    size: str
    x: float
    y: float

    @property
    def radius(self) -> float:
        """Return half the width in the middle state, in frame units."""
        return RADIUS_BY_SIZE[self.size]


@dataclass(frozen=True, kw_only=True)
class Event:
    """An action of one thing, or of two together (in a chase, the chaser is first)."""

    action: str
    actors: tuple[int, ...]
    """Positions in `Scene.things`."""
    phase: str = "whole"
    """The `whole` clip, or only its `first` or `second` half."""
    moment: float = 2.0
    """Distance from the middle, in tau, at which a thing vanishes (after the middle) or appears (before it)."""


@dataclass(frozen=True, kw_only=True)
class Background:
    """A muted textured surface; `seed` determines its tone and grain."""

    texture: str
    seed: int


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Everything that a clip shows. Without events it is a still picture."""

    things: tuple[Thing, ...]
    events: tuple[Event, ...]
    background: Background
    distractors: tuple[Thing, ...] = ()
    """Still things that captions do not name."""


class Pose(NamedTuple):
    """A thing at one moment: centre and radius in frame units, width as a share of the upright shape's."""

    x: float
    y: float
    radius: float
    width: float
    visible: bool


def tau_at(frame: int, num_frames: int) -> float:
    """Return the time of a frame: 0 at frame `num_frames // 2`, evenly spaced, within [-5, 5].

    An even number of frames has one more before the middle than after it; the first repeats the second, so that a clip
    and its reversal have the same set of frames.
    """
    middle = num_frames // 2
    after = num_frames - 1 - middle
    return TAU_END * max(-1.0, (frame - middle) / max(after, 1))


def rest_pose(thing: Thing) -> Pose:
    """Return the pose of a thing in its middle state."""
    return Pose(thing.x, thing.y, thing.radius, 1.0, True)


def poses(scene: Scene, tau: float) -> tuple[Pose, ...]:
    """Return the pose of each thing at time `tau`."""
    result = [rest_pose(thing) for thing in scene.things]
    for event in scene.events:
        active = {"whole": tau, "first": min(tau, 0.0), "second": max(tau, 0.0)}[event.phase]
        moved = [result[actor] for actor in event.actors]
        changed = [_solo(event, moved[0], active)] if len(moved) == 1 else _joint(event.action, moved, active)
        for actor, pose in zip(event.actors, changed, strict=True):
            result[actor] = pose
    return tuple(result)


def _solo(event: Event, pose: Pose, tau: float) -> Pose:
    share = tau / TAU_END
    sign = 1 if event.action in ("right", "fall", "grow") else -1
    match event.action:
        case "left" | "right":
            return pose._replace(x=pose.x + _TRAVEL * share * sign)
        case "rise" | "fall":
            return pose._replace(y=pose.y + _TRAVEL * share * sign)
        case "grow" | "shrink":
            return pose._replace(radius=pose.radius * (1 + _RESIZE_SHARE * share * sign))
        case "jump":
            return pose._replace(y=pose.y - _JUMP_HEIGHT * abs(math.sin(math.pi * share)))
        case "spin":  # about the vertical axis, like a coin, so that it is visible for round shapes too
            return pose._replace(width=max(0.12, abs(math.cos(2 * math.pi * tau / _SPIN_PERIOD))))
        case "shake":
            return pose._replace(x=pose.x + _SHAKE_REACH * math.sin(math.pi * tau / 2))
        case "vanish":
            return pose._replace(visible=tau < event.moment - 0.5)
        case "appear":
            return pose._replace(visible=tau > 0.5 - event.moment)
        case _:  # blink
            return pose._replace(visible=not _BLINK_OFF[0] < abs(tau) < _BLINK_OFF[1])


def _joint(action: str, pair: list[Pose], tau: float) -> list[Pose]:
    first, second = pair
    share = tau / TAU_END
    distance = math.hypot(second.x - first.x, second.y - first.y)
    along_x, along_y = (second.x - first.x) / distance, (second.y - first.y) / distance
    match action:
        case "meet" | "part":
            touching = first.radius + second.radius
            shift = (distance - touching) / 2 * share * (1 if action == "meet" else -1)
            step_x, step_y = shift * along_x, shift * along_y
        case "chase":
            shift = _CHASE_TRAVEL * share * math.copysign(1.0, along_x)
            return [pose._replace(x=pose.x + shift) for pose in pair]
        case _:  # pass: half a turn on an ellipse, wide enough that the two do not touch
            centre = {"x": (first.x + second.x) / 2, "y": (first.y + second.y) / 2}
            first, second = first._replace(**centre), second._replace(**centre)
            reach = -distance / 2 * math.cos(math.pi * share)
            aside = ((first.radius + second.radius) / 2 + 1) * math.sin(math.pi * share)
            step_x, step_y = reach * along_x - aside * along_y, reach * along_y + aside * along_x
    return [
        first._replace(x=first.x + step_x, y=first.y + step_y),
        second._replace(x=second.x - step_x, y=second.y - step_y),
    ]


def combinations_of(scene: Scene) -> tuple[tuple[str, str, str], ...]:
    """Return (colour, shape, action) of each actor of each event, starting with the main thing."""
    return tuple(
        (scene.things[actor].colour, scene.things[actor].shape, event.action)
        for event in scene.events
        for actor in event.actors
    )
