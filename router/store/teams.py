"""Teams as the store keeps them: what each runs, has waiting, was charged and may still use."""

from __future__ import annotations

from router.policy.limits import Budget, TeamLimits, TeamTable
from router.policy.shares import Account, Shares

TEAMS_KEPT = 4_096  # beyond it teams with nothing running, waiting or used are forgotten; more teams share no pool


class Team:
    """One team's counts and limits in the pool. Counts leases from the moment they are made."""

    __slots__ = ("account", "budget", "limits", "refused", "running", "waiting")

    def __init__(self, limits: TeamLimits, account: Account, now_s: float) -> None:
        self.limits = limits
        self.account = account
        budget = Budget(limits, now_s)
        self.budget = None if budget.is_unlimited else budget
        self.running = 0
        self.waiting = 0
        self.refused = 0  # newcomers sent away for `max_waiting` that no grant has made room for since

    def __repr__(self) -> str:
        return f"<Team {self.account.name} {self.waiting} waiting | {self.running} running>"

    def set_limits(self, limits: TeamLimits, now_s: float) -> None:
        budget = Budget(limits, now_s) if self.budget is None else self.budget.renewed(limits, now_s)
        self.limits, self.budget = limits, None if budget.is_unlimited else budget
        self.account.weight = limits.weight
        self.account.hold(limits.max_concurrent is not None and self.running >= limits.max_concurrent)

    def began(self) -> None:
        self.running += 1
        limit = self.limits.max_concurrent
        if limit is not None and self.running >= limit:
            self.account.hold(True)

    def ended(self) -> bool:
        """Whether it was held back by its own limit until now."""
        self.running -= 1
        account, limit = self.account, self.limits.max_concurrent
        if not account.is_held or limit is None or self.running >= limit:
            return False
        account.hold(False)
        return True

    def book(self, tokens: int) -> None:
        if self.budget is not None:
            self.budget.book(tokens)

    def cancel(self, estimate: int) -> None:
        if self.budget is not None:
            self.budget.cancel(estimate)


class Teams:
    """Those that were heard of, by name."""

    def __init__(self, table: TeamTable, shares: Shares) -> None:
        self.by_name: dict[str, Team] = {}
        self._table = table
        self._shares = shares

    def of(self, name: str, now_s: float) -> Team:
        team = self.by_name.get(name)
        if team is None:
            limits = self._table.of(name)
            team = self.by_name[name] = Team(limits, self._shares.account(name, limits.weight), now_s)
        return team

    def set_table(self, table: TeamTable, now_s: float) -> None:
        self._table = table
        for name, team in self.by_name.items():
            if team.limits != table.of(name):
                team.set_limits(table.of(name), now_s)

    def idle(self, now_s: float) -> list[str]:
        """Forgets those beyond TEAMS_KEPT that nothing is owed to or by; answers their names."""
        over = len(self.by_name) - TEAMS_KEPT
        if over <= 0:
            return []
        idle = [name for name, team in self.by_name.items() if _is_idle(team, now_s)][:over]
        for name in idle:
            del self.by_name[name]
        return idle


def _is_idle(team: Team, now_s: float) -> bool:
    if team.running or team.waiting:
        return False
    return team.budget is None or team.budget.is_untouched(now_s)
