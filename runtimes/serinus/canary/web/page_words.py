"""How a run stands, in the few words that somebody woken up reads first."""

from __future__ import annotations

from dataclasses import dataclass

from .history import RunHistory

__all__ = ["Headline", "headline"]


@dataclass(frozen=True, slots=True)
class Headline:
    """What is read first."""

    short: str
    """For the title of a tab."""
    title: str
    sentence: str
    style: str = ""
    """good, bad, or nothing: it is waited."""


def headline(history: RunHistory) -> Headline:
    """Say how a run stands."""
    stable, canary = history.stable, history.canary
    share = "" if history.percent is None else f" at {history.percent:g} %"
    first = f" {history.reasons[0][:1].upper()}{history.reasons[0][1:]}." if history.reasons else ""
    words = f"{history.words[:1].upper()}{history.words[1:]}." if history.words else ""
    if history.ending == "promoted":
        return Headline(
            "Promoted", f"Promoted: {canary} has all traffic.", f"The canary was not worse. {words}", "good"
        )
    if history.ending == "rolled back":
        return Headline(
            "Rolled back",
            f"Rolled back: {stable} has all traffic again.",
            f"The canary {canary} did worse.{first} {words}",
            "bad",
        )
    if history.ending == "undecided":
        return Headline("Undecided", f"Undecided{share}: a person has to decide.", words)
    if history.ending == "changed":
        return Headline("Stopped", "Stopped: somebody else changed the service.", words, "bad")
    if history.ending == "verdict":
        style = {"promote": "good", "rollback": "bad"}.get(history.decision, "")
        return Headline("Verdict", f"Verdict: {_verb(history.decision)}. Nothing was changed.", words, style)
    if history.ending:
        return Headline("Ended", f"Ended: {history.ending}.", words)
    if not history.points:
        return Headline(
            "Waiting",
            f"Waiting for the first look{share}.",
            "Nothing has been counted yet; nothing moves until something is.",
        )
    if history.is_replay:
        style = {"promote": "good", "rollback": "bad"}.get(history.decision, "")
        said = {"hold": "still waits"}.get(history.decision, f"would {_verb(history.decision)}")
        return Headline("Replay", f"Judged again: it {said}{share}.", first.strip() or "No reason was given.", style)
    if history.decision == "advance":
        return Headline(
            "Going up", f"Going up from {history.percent or 0:g} %: nothing is against the next step.", first.strip()
        )
    if history.decision == "promote":
        return Headline("Promoting", f"Promoting {canary}.", "Every guardrail lets the canary through.", "good")
    if history.decision == "rollback":
        return Headline("Rolling back", f"Rolling back {canary}.", first.strip(), "bad")
    needed = history.requests_needed
    wait = f" About {needed:,} requests more are needed, if the canary is as good as stable." if needed else ""
    return Headline("Waiting", f"Waiting{share}: not enough is known yet.", f"{first.strip()}{wait}".strip())


def _verb(decision: str) -> str:
    return {"rollback": "roll back", "advance": "go up one step"}.get(decision, decision or "nothing")
