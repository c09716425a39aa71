"""The planted bugs: classics of services like this one, and every fault that this one had.

Each says what must find it, and by which sign: a proof that finds something else has not
understood it. A mutant that does not fit its function any more is an error, not a pass.
"""

from __future__ import annotations

from tests.mutants.plant import ByMachine, BySwarm, ByTest, Mutant


def _by(machine: str, *signs: str, seeds: int = 1500) -> ByMachine:
    return ByMachine(machine=machine, signs=signs, seeds=seeds)


def _swarm(operation: str, *signs: str, seeds: int = 100) -> BySwarm:
    return BySwarm(operation=operation, signs=signs, seeds=seeds)


def _test(path: str, sign: str) -> ByTest:
    return ByTest(path=path, sign=sign)


BACKLOG = "msgservice.core.backlog:Backlog"
FLIGHT = "msgservice.core.flight:Flight"
FLIGHT_LIMIT = "msgservice.core.flight_limit:FlightLimit"
INBOX = "msgservice.core.inbox:Inbox"
MARKS = "msgservice.core.marks:Marks"
ANSWERS = "msgservice.core.inbox:Answers"
INGRESS = "msgservice.node.ingress:Ingress"
REPLAYS = "tests/simulation/test_replays.py"

CALLS = "tests/unit/test_blocking_calls.py"
EXPIRY = "tests/unit/test_node_expiry.py"


def _expiry(test: str) -> ByTest:
    return _test(f"{EXPIRY}::{test}", test)


HTTP = "tests/integration/test_http_listener.py"
LOGINS = "tests/integration/test_http_logins.py"
EVENTS = "tests/integration/test_http_events.py"
STREAMS = "msgservice.faces.streams.durable:NodeStreams"


def _stream(test: str) -> ByTest:
    return _test(f"tests/unit/test_streams_node.py::{test}", test)


LIVE = "msgservice.faces.streams.live:LiveStreams"


def _live(test: str) -> ByTest:
    return _test(f"tests/unit/test_streams_server.py::{test}", test)


RESPONDERS = "msgservice.node.responders:Responders"


def _asked(test: str) -> ByTest:
    path = "tests/unit/test_node_responders.py"
    return _test(f"{path}::test_57_{test}", f"test_57_{test}")


def _play(test: str) -> ByTest:
    return _test(f"tests/simulation/test_requests.py::test_57_{test}", f"test_57_{test}")


def _purge(test: str) -> ByTest:
    return _test(f"tests/unit/test_node_purge.py::{test}", test)


def _away(test: str) -> ByTest:
    return _test(f"tests/unit/test_node_away.py::{test}", test)


PROMISES = "msgservice.node.promises:Promises"


def _promised(test: str) -> ByTest:
    path = "tests/unit/test_node_promises.py"
    return _test(f"{path}::test_55_{test}", f"test_55_{test}")


def _delayed(test: str) -> ByTest:
    return _test(f"tests/unit/test_node_delayed.py::{test}", test)


def _keyed(test: str) -> ByTest:
    return _test(f"tests/unit/test_node_keys.py::{test}", test)


def _chain(test: str) -> ByTest:
    return _test(f"tests/unit/test_node_chains.py::{test}", test)


def _of_key(test: str) -> ByTest:
    return _test(f"tests/contract/test_log_keys.py::{test}", test)


AWAY = "msgservice.node.away:Away"
OUTBOX_ROWS = "tests/unit/test_outbox_rows.py"
OUTBOX_RELAY = "tests/integration/test_outbox_relay.py"

OPEN_RECEIPTS = "msgservice.client.open_receipts:OpenReceipts"

_ALL = [
    # --- found by the swarm in what falls due, in keys and letters
    Mutant(
        name="what-no-node-has-taken-is-not-kept-for-the-next-process",
        at="msgservice.client.disk:DiskOutbox.note_untaken",
        old="self.file.note_untaken(untaken)",
        new="pass",
        catcher=_test(
            "tests/unit/test_client_disk.py::"
            "test_6_an_older_copy_whose_newest_expired_unsent_is_noticed_after_a_restart_too",
            "test_6_an_older_copy_whose_newest_expired_unsent_is_noticed_after_a_restart_too",
        ),
    ),
    Mutant(
        name="what-was-refused-is-missed-after-a-restart",
        at="msgservice.client.acked:Acked.__init__",
        old="self._ranges.remove(first, last)\n        (self._refused",
        new="(self._refused",
        catcher=_test(
            "tests/unit/test_client_acked.py",
            "test_6_after_a_restart_what_was_not_taken_is_neither_missed_nor_the_nodes",
        ),
    ),
    Mutant(
        name="an-older-outbox-is-taken-for-the-one-that-the-node-knows",
        at="msgservice.client.hop:NodeHop._compare",
        old="or self._acked.is_contradicted(resume)",
        new="",
        catcher=_test(
            "tests/simulation/test_swarm_found.py::"
            "test_6_an_older_outbox_whose_newest_run_expired_unsent_begins_anew",
            "test_6_an_older_outbox_whose_newest_run_expired_unsent_begins_anew",
        ),
    ),
    Mutant(
        name="what-ends-with-the-node-is-a-failure",
        at="msgservice.node.due:Due._failed",
        old="if not self._is_running and failure.check(LogUnavailable):",
        new="if False:",
        catcher=_test(
            "tests/unit/test_node_due.py::test_what_ends_with_the_node_is_no_failure",
            "test_what_ends_with_the_node_is_no_failure",
        ),
    ),
    Mutant(
        name="a-letter-goes-to-a-node-where-it-has-been",
        at="msgservice.node.letters:Letters._page",
        old="self._check_path(act, target, chosen)",
        new="",
        catcher=_chain("test_46_a_dead_letter_goes_to_no_node_where_its_message_has_been"),
    ),
    Mutant(
        name="a-letter-of-what-is-only-retained-is-delivered",
        at="msgservice.core.copies:copies_of_letters",
        old="kept = FLAG_RETAIN | FLAG_RETAIN_ONLY if to_node else 0",
        new="kept = 0",
        catcher=_chain(
            "test_46_what_was_only_to_be_retained_is_so_too_when_its_dead_letter_is_sent_again"
        ),
    ),
    Mutant(
        name="a-large-copy-is-sent-again-beside-its-original",
        at="msgservice.log.replaying:_CopiedBefore.without",
        old="original = self._original_of(batch, index)",
        new="pass",
        catcher=_chain(
            "test_what_a_node_has_lost_comes_once_though_it_is_too_large_to_name_its_original"
        ),
    ),
    Mutant(
        name="who-came-second-is-not-told-as-what-it-waits",
        at="msgservice.log.dedupe:_known_by_key",
        old="of.due, of.identity",
        new="of.due",
        catcher=_of_key("test_45_a_key_of_what_waits_answers_before_it_is_due_and_after"),
    ),
    Mutant(
        name="an-id-of-who-came-second-is-forgotten",
        at="msgservice.log.staging:stage_keys",
        old="elif of.due:",
        new="elif False:",
        catcher=_of_key("test_45_who_came_second_finds_it_by_its_own_id_while_it_waits_and_then"),
    ),
    Mutant(
        name="a-page-is-as-large-as-it-was",
        at="msgservice.node.page_size:PageSize.took",
        old="self._cost += WEIGHT * (cost - self._cost)",
        new="pass",
        catcher=_test(
            "tests/unit/test_page_size.py::"
            "test_what_pages_cost_is_followed_and_one_that_others_kept_waiting_says_little",
            "test_what_pages_cost_is_followed_and_one_that_others_kept_waiting_says_little",
        ),
    ),
    # --- outbox tables
    Mutant(
        name="a-row-that-was-not-handed-over-counts-as-such",
        at="msgservice.outbox.rows:RelayRows._claim",
        old="self._execute(cursor, _NOT_HANDED, kept)\n    assigned =",
        new="pass\n    assigned =",
        catcher=_test(
            f"{OUTBOX_ROWS}::test_what_the_file_has_not_kept_waits_again_and_what_it_has_does_not",
            "waits_again_and_what_it_has_does_not",
        ),
    ),
    Mutant(
        name="a-row-is-read-by-the-highest-id",
        at="msgservice.outbox.rows:RelayRows._take",
        old="sizes = self._tuples(cursor)",
        new="sizes = [one for one in self._tuples(cursor) if one[0] > max(self._assigned)]",
        catcher=_test(
            f"{OUTBOX_ROWS}::test_a_row_that_commits_behind_a_higher_id_is_not_passed_over",
            "commits_behind_a_higher_id",
        ),
    ),
    Mutant(
        name="a-sequence-that-was-given-up-counts-as-kept",
        at="msgservice.client.outbox_file:OutboxFile._write",
        old="kept = runs[-1].last if runs else None",
        new="kept = sequence",
        catcher=_test(
            f"{OUTBOX_RELAY}::test_what_was_given_up_is_no_row_that_was_handed_over",
            "what_was_given_up",
        ),
    ),
    # --- receipts that survive, found by the swarm
    Mutant(
        name="a-receipt-goes-when-one-receiver-is-done",
        at=f"{OPEN_RECEIPTS}._over",
        old="return ()",
        new="continue",
        catcher=_swarm("list", "a receipt is lost", seeds=400),
    ),
    Mutant(
        name="a-receipt-goes-though-nobody-has-asked",
        at=f"{OPEN_RECEIPTS}._end",
        old="self.ended.add(low, high)",
        new="self._done(low, high)",
        catcher=_swarm("list", "a receipt is lost", seeds=400),
    ),
    Mutant(
        name="what-is-forgotten-is-listed-all-the-same",
        at="msgservice.client.disk:DiskOutbox.let_go",
        old="self.receipts.forget(first, last)",
        new="pass",
        catcher=_swarm("forget", "forgotten, and listed", seeds=400),
    ),
    Mutant(
        name="what-is-listed-is-not-told-anew",
        at="msgservice.client.client:Client._listed",
        old="self._have_told(*listed.again)",
        new="pass",
        catcher=_swarm("list", "a receipt is never told", seeds=400),
    ),
    # --- dead letters and retained messages, found by the swarm
    Mutant(
        name="a-letter-goes-without-its-copy",
        at="msgservice.node.letters:Letters._page",
        old="copies_of_letters(chosen, self._limits.max_batch, to_node=to_node)",
        new="copies_of_letters(chosen[1:], self._limits.max_batch, to_node=to_node)",
        catcher=_swarm("requeue", "letters are not sent again", "a dead letter is lost"),
    ),
    Mutant(
        name="letters-are-sent-again-as-often-as-they-come",
        at="msgservice.node.letters:Letters._all",
        old="end = min(end, copied_from - 1)",
        new="pass",
        catcher=_test(
            "tests/unit/test_node_letters.py -k meanwhile_are", "meanwhile_are_sent_again"
        ),
    ),
    Mutant(
        name="a-letter-stays-behind-its-copy",
        at="msgservice.log.staging:take_letters",
        old="        operations.append((_DELETE_LETTERS, where))\n",
        new="",
        catcher=_swarm("requeue", "dealt with, and still a letter", "sent again too often"),
    ),
    Mutant(
        name="a-letter-that-is-dropped-comes",
        at="msgservice.node.letters:Letters._page",
        old="if act == REQUEUE:",
        new="if act:",
        catcher=_swarm("drop", "dropped, and sent again", "sent again too often"),
    ),
    Mutant(
        name="what-was-cleared-is-retained",
        at="msgservice.records:Retained.of",
        old="if not last.body:",
        new="if False:",
        catcher=_swarm("join", "nothing is retained", "a wrong message is retained"),
    ),
    Mutant(
        name="the-first-of-a-subject-is-retained",
        at="msgservice.log.staging:stage_retained",
        old='"or replace into retained"',
        new='"or ignore into retained"',
        catcher=_swarm("join", "a wrong message is retained"),
    ),
    Mutant(
        name="who-joins-has-nothing-first",
        at="msgservice.log.staging:stage_append",
        old="if entry.joins:",
        new="if False:",
        catcher=_swarm("join", "a retained message is missing"),
    ),
    Mutant(
        name="who-joins-misses-what-came-with-it",
        at="msgservice.node.commits:Commits._start",
        old="if version != self._decided:",
        new="if False:",
        catcher=_swarm("join", "a gap behind what is retained"),
    ),
    Mutant(
        name="what-waits-at-a-start-is-counted-besides-its-copies",
        at="msgservice.node.dispatch:Dispatch.begin",
        old="account.queued_bytes - queued.look()",
        new="account.queued_bytes",
        catcher=_test(
            "tests/unit/test_node_retained.py -k configuration_brings", "configuration_brings"
        ),
    ),
    Mutant(
        name="what-is-kept-for-later-comes-at-once",
        at="msgservice.node.acceptance:Acceptance._matching",
        old="flags & FLAG_RETAIN_ONLY",
        new="flags & 0",
        catcher=_swarm("keep", "kept for later, and delivered"),
    ),
    # --- who is away for too long
    Mutant(
        name="removes-who-has-dead-letters",
        at=f"{AWAY}._over",
        old="if self._log.dead_bytes(row.number):",
        new="if False:",
        catcher=_away("test_49_one_with_dead_letters_stays_until_they_are_dropped_and_it_is_said"),
    ),
    Mutant(
        name="removes-whoever-came-meanwhile",
        at="msgservice.node.receivers:Receivers.remove_away",
        old="or not is_away()",
        new="",
        catcher=_away("test_49_one_that_comes_while_its_removal_begins_stays"),
    ),
    Mutant(
        name="removes-what-is-configured",
        at=f"{AWAY}.limit",
        old="row.configured or row.removed",
        new="row.removed",
        catcher=_away("test_49_one_of_the_configuration_stays_and_takes_no_away_max"),
    ),
    Mutant(
        name="removes-before-anybody-could-come-back",
        at=f"{AWAY}.earliest",
        old="max(self._begins_at, self._due.now()",
        new="max(0, self._due.now()",
        catcher=_away("test_49_after_a_start_nobody_is_removed_before_it_had_time_to_come_back"),
    ),
    Mutant(
        name="counts-time-away-anew-with-each-start",
        at=f"{AWAY}.load",
        old="None if known is None else min(known, self._log.age())",
        new="None",
        catcher=_away("test_49_time_away_goes_on_over_a_kill_and_standing_still_is_no_time_away"),
    ),
    Mutant(
        name="keeps-a-time-away-that-has-ended",
        at=f"{AWAY}.judge",
        old="return is_said_otherwise or before is not None",
        new="return before is not None and bool(limit)",
        catcher=_away("test_49_a_time_away_that_ended_while_nobody_counted_is_forgotten"),
    ),
    Mutant(
        name="counts-the-time-of-a-pause",
        at=f"{AWAY}.judge",
        old="not limit or row.options.paused or row.number",
        new="not limit or row.number",
        catcher=_away("test_49_one_that_is_paused_stays_and_its_time_begins_when_it_is_resumed"),
    ),
    # --- rewinds, time away, and keys with other options, found by the swarm
    Mutant(
        name="a-rewind-leaves-single-messages-out",
        at="msgservice.log.replaying:copies",
        old="            if not count:\n",
        new="            if count < 2:\n",
        catcher=_swarm("rewind", "a rewind is not whole"),
    ),
    Mutant(
        name="a-rewind-goes-backwards",
        at="msgservice.log.replaying:copies",
        old="made += copies_of(batch, ranges, size_max, expires=replay.kind != REWIND)",
        new="made[:0] = copies_of(batch, ranges, size_max, expires=replay.kind != REWIND)",
        catcher=_swarm("rewind", "rewound out of order"),
    ),
    Mutant(
        name="a-rewind-copies-each-message-twice",
        at="msgservice.log.replaying:copies",
        old="made += copies_of(batch, ranges, size_max, expires=replay.kind != REWIND)",
        new="for _ in range(2):\n"
        "            made += copies_of(batch, ranges, size_max, expires=replay.kind != REWIND)",
        catcher=_swarm("rewind", "rewound too often"),
    ),
    Mutant(
        name="a-rewind-copies-what-was-for-others",
        at="msgservice.log.replaying:_of_sets",
        old="if total.last >= low and is_member(total.audience.members, receiver)",
        new="if total.last >= low",
        catcher=_swarm("rewind", "rewound, and never had"),
    ),
    Mutant(
        name="who-was-here-just-now-is-removed",
        at="msgservice.node.away:Away.limit",
        old="* 1000)",
        new="* 300)",
        catcher=_swarm("leave", "removed before its time"),
    ),
    Mutant(
        name="who-is-away-for-too-long-stays",
        at="msgservice.node.away:Away._over",
        old="if row.number in self._here():",
        new="if row:",
        catcher=_swarm("leave", "away for too long, and there"),
    ),
    Mutant(
        name="a-key-does-not-count-for-what-is-retained",
        at="msgservice.node.acceptance:Acceptance.batch",
        old="used = messages[0].key or key",
        new="used = None if transfer.flags & 1 else messages[0].key or key",
        catcher=_swarm("keyed_keep", "a key is stored twice"),
    ),
    Mutant(
        name="a-key-does-not-count-for-what-waits",
        at="msgservice.node.acceptance:Acceptance.batch",
        old="used = messages[0].key or key",
        new="used = None if transfer.delay else messages[0].key or key",
        catcher=_swarm("keyed_later", "a key is stored twice"),
    ),
    # --- what is said of a message before it is delivered, found by the swarm
    Mutant(
        name="a-key-is-forgotten-before-its-time",
        at="msgservice.log.retention:Retention._forget_keys",
        old="int(store.limits.idempotency_key_seconds * 1000)",
        new="int(store.limits.idempotency_key_seconds * 100)",
        catcher=_swarm("keyed", "a key is stored twice"),
    ),
    Mutant(
        name="who-said-a-key-again-is-not-told-what-is-undone",
        at="msgservice.node.outlet_progress:OutletProgress.progress_stored",
        old="self._tracker.decreed(name, [(one.first, one.last)], one.status, one.reason)",
        new="pass",
        catcher=_swarm("undo_key", "a receiver stalls", "a receipt never settles"),
    ),
    Mutant(
        name="who-said-a-key-again-is-not-told-what-is-over",
        at="msgservice.node.outlet_progress:OutletProgress.progress_stored",
        old="self._tracker.decreed(name, [(one.first, one.last)], one.status, one.reason)",
        new="pass",
        catcher=_swarm("keyed_short", "a receipt never settles"),
    ),
    Mutant(
        name="a-key-counts-for-one-incarnation",
        at="msgservice.node.intake:Sender.of",
        old="scope = scope_of_user(user) if user else scope_of_sender(name)",
        new='scope = f"{user} {name} {incarnation}"',
        catcher=_swarm("keyed", "a key is stored twice"),
    ),
    Mutant(
        name="what-expires-does-so-too-early",
        at="msgservice.node.acceptance:Acceptance.batch",
        old="self._due.now() + transfer.ttl",
        new="self._due.now() + transfer.ttl * 3 // 4",
        catcher=_swarm("short", "expired before its time"),
    ),
    Mutant(
        name="what-is-in-flight-expires-in-a-swarm",
        at=f"{BACKLOG}.decree",
        old="if run.state != FLIGHT:",
        new="if True:",
        catcher=_swarm("short", "expired after it was acknowledged"),
    ),
    Mutant(
        name="what-is-over-is-sent",
        at=f"{FLIGHT}._is_over",
        old="not backlog.is_over(run, due.now())",
        new="True",
        catcher=_swarm("short", "sent when it was over"),
    ),
    Mutant(
        name="a-timer-for-what-is-due-finds-itself-early-for-ever",
        at="msgservice.clock:milliseconds_of",
        old="seconds * 1000 + ROUNDING",
        new="seconds * 1000",
        catcher=_test("tests/unit/test_node_due.py -k finds_it_due", "finds_it_due"),
    ),
    Mutant(
        name="what-is-due-goes-before-its-time",
        at="msgservice.node.delayed:DelayedMessages._move",
        old="self._log.due(now, self._after, self._page_size.now)",
        new="self._log.due(now + 1000, self._after, self._page_size.now)",
        catcher=_swarm("later", "delivered before it is due"),
    ),
    Mutant(
        name="what-waits-is-not-known-to-be-taken",
        at="msgservice.log.dedupe:take_batches",
        old="            sender.floor = last + 1\n",
        new="            sender.floor = sequence if batch.due_at else last + 1\n",
        catcher=_swarm("later", "stored twice"),
    ),
    Mutant(
        name="what-is-behind-a-run-that-is-cut-goes-first",
        at="msgservice.log.delayed:Change.move",
        old="            break",
        new="            continue",
        catcher=_test("tests/contract/test_log_delayed.py -k behind_a_run", "behind_a_run"),
    ),
    Mutant(
        name="what-is-due-goes-in-any-order-in-a-swarm",
        at="msgservice.log.delayed:due",
        old="numbers.append(number)",
        new="numbers.insert(0, number)",
        catcher=_swarm("later", "due first, and moved behind"),
    ),
    Mutant(
        name="what-is-cancelled-goes-all-the-same",
        at="msgservice.log.delayed:Change._cut",
        old="self._leave(row.id, row.size, row.row_crc)",
        new="pass",
        catcher=_swarm("call_back", "delivered though it was cancelled"),
    ),
    Mutant(
        name="a-cancel-finds-nothing-and-cancels",
        at="msgservice.node.delayed:DelayedMessages.cancel",
        old="if not ranges:",
        new="if len(ranges) != 7:",
        catcher=_swarm("call_back", "a cancel does not find what waits", "a receipt never settles"),
    ),
    # --- retained when it is due
    Mutant(
        name="what-is-due-is-retained-beyond-the-limit",
        at="msgservice.node.acceptance:Acceptance.decide_due",
        old="self._check_room(batch)",
        new="pass",
        catcher=_test("tests/unit/test_node_retained.py -k waits_on", "waits_on"),
    ),
    Mutant(
        name="what-is-due-overtakes-what-has-no-room",
        at="msgservice.node.acceptance:Acceptance.decide_due",
        old="held.add(batch.lane)",
        new="pass",
        catcher=_test("tests/unit/test_node_retained.py -k waits_on", "waits_on"),
    ),
    Mutant(
        name="what-is-due-overtakes-what-has-no-room-a-page-before",
        at="msgservice.node.delayed:DelayedMessages._hand_over",
        old="await self._commits.due(going, self._held)",
        new="await self._commits.due(batches, set())",
        catcher=_test("tests/unit/test_node_retained.py -k waits_on", "waits_on"),
    ),
    # --- options that are said together
    Mutant(
        name="what-is-due-is-not-retained",
        at="msgservice.log.dedupe:take_batches",
        old="if flags & FLAG_RETAIN and not (flags & FLAG_REPLAY and item.sender == NODE):",
        new="if flags & FLAG_RETAIN and not flags & FLAG_REPLAY and not item.due_at:",
        catcher=_swarm(
            "keep_later", "a wrong message is retained", "a retained message is missing"
        ),
    ),
    Mutant(
        name="what-is-retained-forgets-its-ttl",
        at="msgservice.records:Retained.of",
        old="batch.expires_at or 0",
        new="0",
        catcher=_swarm("keep_short", "a wrong message is retained", "sent when it was over"),
    ),
    Mutant(
        name="a-ttl-counts-from-when-the-delay-is-over",
        at="msgservice.node.acceptance:Acceptance.batch",
        old="self._due.now() + transfer.ttl",
        new="self._due.now() + transfer.ttl + (transfer.delay or 0)",
        catcher=_swarm("later_short", "sent when it was over"),
    ),
    # --- keys of what waits
    Mutant(
        name="who-came-second-is-not-told-that-it-is-due",
        at="msgservice.node.tracker:Tracker.routed",
        old="if self._waits:",
        new="if False:",
        catcher=_keyed("test_45_a_key_with_a_delay_is_one_message_and_each_is_told_when_it_is_due"),
    ),
    Mutant(
        name="who-came-second-is-not-told-that-it-was-cancelled",
        at="msgservice.node.tracker:Tracker.cancelled",
        old="self._due_by_key(due)",
        new="pass",
        catcher=_keyed(
            "test_45_a_cancelled_message_is_cancelled_for_each_who_sent_its_key_and_who_comes_then"
        ),
    ),
    Mutant(
        name="the-log-forgets-who-came-second-to-what-is-cancelled",
        at="msgservice.log.delayed:Change.stage",
        old="if self._cancelled and (staged.aliases or staged.state.aliases):",
        new="if False:",
        catcher=_keyed(
            "test_45_a_cancelled_message_is_cancelled_for_each_who_sent_its_key_and_who_comes_then"
        ),
    ),
    Mutant(
        name="a-key-is-over-before-it-is-due",
        at="msgservice.log.staging:_known_from",
        old="max(0, row.due - now) if row.due else 0",
        new="0",
        catcher=_test(
            "tests/contract/test_log_keys.py::test_45_a_key_of_what_waits_is_remembered_from_when_it_is_due",
            "test_45_a_key_of_what_waits_is_remembered_from_when_it_is_due",
        ),
    ),
    # --- what waits, and expires
    Mutant(
        name="a-delay-forgets-the-ttl",
        at="msgservice.log.delayed:_batches",
        old="batch.delayed_id, batch.expires_at = due_at, number, expires_at",
        new="batch.delayed_id = due_at, number",
        catcher=_delayed("test_44_one_that_was_moved_expires_where_it_was_not_delivered"),
    ),
    Mutant(
        name="what-is-delayed-grows-a-run-that-is-not",
        at="msgservice.client.gathering:Gathering.gather",
        old="plain = is_plain and ttl is not None and due_at is None",
        new="plain = is_plain and ttl is not None",
        catcher=_test(
            "tests/unit/test_client_ttl.py",
            "test_44_what_has_a_delay_as_well_shares_no_run_with_what_has_none",
        ),
    ),
    # --- what is purged
    Mutant(
        name="purges-what-came-after-the-count",
        at="msgservice.node.purge:Purge.page",
        old="newest if end is None else min(end, newest)",
        new="newest",
        catcher=_purge("test_49_what_comes_after_the_count_is_not_touched"),
    ),
    Mutant(
        name="purges-every-subject",
        at="msgservice.node.purge:_stretches",
        old="subject is not None and not matches(subject, batch.subject)",
        new="False",
        catcher=_purge("test_49_of_a_subject_nothing_else_is_cancelled_loaded_or_not"),
    ),
    Mutant(
        name="a-page-of-a-purge-is-answered-before-it-is-on-disk",
        at="msgservice.node.purge:Purge.page",
        old="await outlet.progress.all_stored()",
        new="pass",
        catcher=_purge("test_49_a_page_is_answered_when_it_is_on_disk"),
    ),
    # --- what expires
    Mutant(
        name="expires-while-it-is-in-flight",
        at=f"{BACKLOG}.decree",
        old="if run.state != FLIGHT:",
        new="if True:",
        catcher=_expiry("test_what_was_sent_and_not_answered_expires_with_an_unknown_outcome"),
    ),
    Mutant(
        name="expires-although-a-resume-has-named-it",
        at=f"{BACKLOG}._not_loaded",
        old="if resumed and resumed.overlaps(first, last):",
        new="if False:",
        catcher=_expiry("test_what_a_resume_has_named_and_is_not_loaded_is_no_part_of_a_decree"),
    ),
    Mutant(
        name="expires-before-a-receiver-could-say-what-it-has",
        at="msgservice.node.outlet:Outlet._parts",
        old="at > backlog.stored_before or self.may_decree",
        new="True",
        catcher=_expiry("test_after_a_start_a_receiver_has_time_to_say_what_it_had"),
    ),
    Mutant(
        name="is-sent-when-its-time-is-over",
        at=f"{FLIGHT}._is_over",
        old="due is None or due.is_held",
        new="True",
        catcher=_expiry("test_what_is_about_to_be_sent_is_judged_before_the_pass_comes_to_it"),
    ),
    Mutant(
        name="what-does-not-expire-is-part-of-the-range",
        at="msgservice.node.expiry:_Stretches._of",
        old="goes_on = False\n            continue",
        new="continue",
        catcher=_expiry("test_what_does_not_expire_between_is_no_part_of_the_range"),
    ),
    Mutant(
        name="is-told-that-it-expired-before-that-is-stored",
        at="msgservice.node.expiry:Expiry._end_pass",
        old="await outlet.progress.decreed_stored()",
        new="pass",
        catcher=_expiry("test_what_is_not_loaded_of_who_is_connected_is_told_when_it_is_stored"),
    ),
    Mutant(
        name="a-history-goes-on-behind-what-was-settled",
        at="msgservice.node.tracker:Tracker._history",
        old="following is None or following > last",
        new="following is None",
        catcher=_purge("test_49_a_producer_is_told_of_each_page_once_and_of_nothing_behind_it"),
    ),
    Mutant(
        name="what-is-stored-waits-for-what-is-settled-since",
        at="msgservice.node.outlet_progress:OutletProgress._moments_pass",
        old="one.settled <= 0 and one.decreed <= 0",
        new="self.is_stored",
        catcher=_test("tests/unit/test_node_parts.py -k stored_to_a_moment", "stored_to_a_moment"),
    ),
    # --- Perspective Broker
    Mutant(
        name="pb-values-are-made-of-whatever-comes",
        at="msgservice.transport.pb.broker:BoundedBroker._called",
        old="jellied.check(value, self.also)",
        new="value",
        catcher=_test(
            "tests/unit/test_pb_broker.py::test_a_value_of_another_type_is_an_error_for_the_caller_alone",
            "test_a_value_of_another_type",
        ),
    ),
    Mutant(
        name="pb-strangers-talk-without-end",
        at="msgservice.transport.pb.broker:BoundedBroker._check_total",
        old="is_stranger and",
        new="False and",
        catcher=_test(
            "tests/unit/test_pb_broker.py::"
            "test_a_stranger_who_says_little_again_and_again_ends_within_the_limit",
            "test_a_stranger_who_says_little",
        ),
    ),
    Mutant(
        name="pb-a-paused-side-answers-at-once",
        at="msgservice.transport.pb.channel:PbChannel.frames_came",
        old="not self._is_paused and not self._to_answer",
        new="True",
        catcher=_test(
            "tests/unit/test_pb_broker.py::"
            "test_what_was_held_is_handed_on_in_order_when_reading_goes_on_and_answered_then",
            "test_what_was_held_is_handed_on",
        ),
    ),
    Mutant(
        name="pb-a-side-sends-beyond-its-window",
        at="msgservice.transport.pb.channel:PbChannel.turn_ended",
        old="self._unanswered < WINDOW_BYTES",
        new="True",
        catcher=_test(
            "tests/unit/test_pb_broker.py::"
            "test_a_side_sends_no_more_than_its_window_before_it_is_answered",
            "test_a_side_sends_no_more",
        ),
    ),
    Mutant(
        name="pb-crossed-dials-end-each-other",
        at="msgservice.pb:PbPeer.judge",
        old="crossed and other > self.instance",
        new="crossed",
        catcher=_test(
            "tests/unit/test_pb_peer_dials.py::"
            "test_of_two_that_cross_the_one_stays_that_the_smaller_has_dialled",
            "test_of_two_that_cross",
        ),
    ),
    Mutant(
        name="pb-a-dead-connection-keeps-its-place",
        at="msgservice.pb:PbPeer.judge",
        old="crossed = seen is None or seen[0] != self.instance or seen[1] < mine.number",
        new="crossed = True",
        catcher=_test(
            "tests/unit/test_pb_peer_dials.py::"
            "test_both_dial_and_a_third_time_one_whose_connection_is_dead_dials_again",
            "test_both_dial_and_a_third_time",
        ),
    ),
    Mutant(
        name="pb-the-digest-is-taken-where-others-read-along",
        at="msgservice.node.gate:Gate.login_by_digest",
        old="not credentials.is_private",
        new="not credentials.is_private and not self.insecure",
        catcher=_test(
            "tests/unit/test_users_digests.py::test_it_is_never_taken_where_others_read_along",
            "test_it_is_never_taken",
        ),
    ),
    Mutant(
        name="pb-a-view-tells-who-does-not-answer",
        at="msgservice.node.view:_Watcher._tell",
        old="self._is_under_way = True",
        new="pass",
        catcher=_test(
            "tests/unit/test_pb_view.py::"
            "test_who_does_not_answer_gets_no_second_update_and_then_all_that_changed_once",
            "test_who_does_not_answer_gets_no_second",
        ),
    ),
    # --- the outbox
    Mutant(
        name="lost-retry-timer",
        at=f"{FLIGHT}.next_deadline",
        old="return None if run is None or not self._room(run) else run.due",
        new="return None",
        catcher=_by("outbox", "stuck: open, and nothing is due"),
    ),
    Mutant(
        name="cursor-off-by-one",
        at=f"{BACKLOG}.cursor",
        old="open_.firsts[open_.head] - 1",
        new="open_.firsts[open_.head]",
        catcher=_by("outbox", "the cursor is above what is open"),
    ),
    Mutant(
        name="lane-goes-on-before-its-dead-letter-is-stored",
        at=f"{BACKLOG}.settle",
        old="is_dead and self._keeps_letters",
        new="False",
        catcher=_by("outbox", "sent behind a dead letter that is not stored"),
    ),
    Mutant(
        name="what-is-cut-off-has-no-deadline",
        at=f"{BACKLOG}.split",
        old="rest.expires_at is not None",
        new="False",
        catcher=_test("tests/unit/test_deadlines.py -k walk", "walk"),
    ),
    Mutant(
        name="who-moves-what-is-due-is-told-where-something-goes",
        at="msgservice.node.commits:Commits._stored",
        old="in under_way.moving:",
        new="in under_way.moving if is_more else ():",
        catcher=_delayed("test_43_nothing_but_what_has_no_place_for_its_receivers_is_tried_again"),
    ),
    Mutant(
        name="a-client-begins-a-run-of-nothing-whatever-it-says",
        at="msgservice.client.gathering:Gathering.__init__",
        old="self.begin_bytes = -1",
        new="self.begin_bytes = 0",
        catcher=_test(
            "tests/unit/test_client_lone.py -k default_of_a_client", "default_of_a_client"
        ),
    ),
    Mutant(
        name="what-was-moved-is-told-from-the-log-page-by-page",
        at="msgservice.node.tracker:Tracker._history",
        old="first <= missed[0] and missed[1] <= last",
        new="False",
        catcher=_test("tests/unit/test_node_delayed.py -k without_room", "without_room"),
    ),
    Mutant(
        name="node-keeps-no-lane-behind-a-dead-letter",
        at="msgservice.node.outlet:Outlet._make_backlog",
        old="keeps_letters=True",
        new="keeps_letters=False",
        catcher=_test(
            "tests/unit/test_dead_letter_order.py::"
            "test_3_a_node_that_is_killed_before_sends_the_dead_one_first",
            "test_3_a_node_that_is_killed",
        ),
    ),
    Mutant(
        name="dead-letters-beyond-their-limit",
        at="msgservice.node.outlet:Outlet._make_backlog",
        old="letters_room=lambda run, refusal: self.progress.letters_room(run, refusal),",
        new="",
        catcher=_test(
            "tests/unit/test_node_dead_room.py::"
            "test_12_a_flight_that_is_rejected_whole_takes_no_more_than_dead_bytes",
            "test_12_a_flight_that_is_rejected_whole",
        ),
    ),
    Mutant(
        name="dead-letters-of-all-beyond-their-limit",
        at="msgservice.node.dead_letters:DeadLetters.room",
        old="min(own, self._limits.dead_bytes_total_max - self._total)",
        new="own",
        catcher=_test(
            "tests/unit/test_node_dead_room.py::"
            "test_12_dead_letters_of_all_receivers_together_have_a_limit",
            "test_12_dead_letters_of_all_receivers",
        ),
    ),
    Mutant(
        name="dead-letters-of-a-group-without-a-limit",
        at="msgservice.node.commits:Commits._start",
        old="letters -= sum(letter.size for letter in progress.dead)",
        new="pass",
        catcher=_test(
            "tests/unit/test_node_dead_room.py -k portions",
            "test_12_dead_letters_of_many_receivers",
        ),
    ),
    Mutant(
        name="retry-due-before-a-dead-letter-is-stored",
        at=f"{BACKLOG}.next_retry",
        old="and not self._stuck.waits_for_letters(run.lane)",
        new="",
        catcher=_by("outbox", "sent behind a dead letter that is not stored"),
    ),
    Mutant(
        name="window-not-enforced",
        at=f"{FLIGHT}._room",
        old="flying + count > self.window_messages",
        new="flying + count > self.window_messages + 1",
        catcher=_by("outbox", "more messages than the window"),
    ),
    Mutant(
        name="window-bytes-not-enforced",
        at=f"{FLIGHT}._room",
        old="or in_flight.size + run.size > self.window_bytes",
        new="",
        catcher=_by("outbox", "more bytes than the window"),
    ),
    Mutant(
        name="window-not-enforced-where-nothing-else-limits",
        at=f"{FLIGHT}.take_transfers",
        old="flying + run.count > self.window_messages",
        new="flying + run.count > self.window_messages + 1",
        catcher=_by("outbox", "more messages than the window"),
    ),
    Mutant(
        name="one-answer-about-what-was-not-sent-is-believed",
        at=f"{FLIGHT}.receive_acks",
        old="<= ranges[0][0] <= ranges[0][1] <= sent.lasts[0]",
        new="<= ranges[0][0] <= ranges[0][1]",
        catcher=_by("outbox", "an answer about what was not sent is believed"),
    ),
    Mutant(
        name="unsorted-resend",
        at="msgservice.core.runs:ReadyQueue.push",
        old="heapq.heappush(back, run.first)",
        new="back.append(run.first)",
        catcher=_by("outbox", "lane order broken", "not in rising order"),
    ),
    Mutant(
        name="floor-too-high",
        at=f"{FLIGHT}._send",
        old="backlog.committed + 1",
        new="backlog.cursor + 1",
        catcher=_by("outbox", "the floor is not stored"),
    ),
    Mutant(
        name="gap-over-what-is-open",
        at=f"{FLIGHT}._send",
        old="None if after == first - 1 else after",
        new="0 if first > 1 else None",
        catcher=_by("outbox", "a gap over what is open"),
    ),
    Mutant(
        name="what-was-sent-before-counts",
        at=f"{FLIGHT}.__init__",
        old="self._sent = RangeSet()",
        new="self._sent = Flight.end.__dict__.setdefault(backlog, RangeSet())",
        catcher=_by("outbox", "an answer about what was not sent is believed"),
    ),
    Mutant(
        name="nacks-of-before-count",
        at=f"{FLIGHT}.receive_nack",
        old="self._nacks += 1",
        new=(
            "known = Flight.end.__dict__;"
            " self._nacks = known[self._backlog] = known.get(self._backlog, 0) + 1"
        ),
        catcher=_by("outbox", "more nacks than were sent"),
    ),
    Mutant(
        name="half-an-answer",
        at=f"{FLIGHT}.go_on",
        old="rest.ranges.appendleft((reached + 1, last))",
        new="pass",
        catcher=_by("outbox", "half an answer"),
    ),
    Mutant(
        name="refused-once-and-never-again",
        at=f"{BACKLOG}.fly",
        old="self._grounded = None",
        new="pass",
        catcher=_by("outbox", "half an answer"),
    ),
    Mutant(
        name="later-is-an-attempt",
        at=f"{BACKLOG}._take_back",
        old="if refusal.action == Action.RETRY:",
        new="if True:",
        catcher=_by("outbox", "dead without a reason"),
    ),
    Mutant(
        name="resume-settles-one-more",
        at=f"{BACKLOG}.receive_resume",
        old="self.acknowledge(ranges)",
        new="self.acknowledge([(first, last + 1) for first, last in ranges])",
        catcher=_by("outbox", "acknowledged and never taken"),
    ),
    Mutant(
        name="larger-than-the-peer-takes",
        at=f"{FLIGHT}._is_larger",
        old="most = self.batch_max - names",
        new="most = self.batch_max - names + 20",
        catcher=_by("outbox", "more than the peer takes"),
    ),
    Mutant(
        name="split-keeps-no-count",
        at=f"{BACKLOG}.split",
        old="self._shrunk(run, rest.count, size - run.size)",
        new="self._shrunk(run, rest.count, 0)",
        catcher=_by("outbox", "counter: ready", "counter: in flight"),
    ),
    Mutant(
        name="final-above-is-forgotten-while-loading",
        at=f"{BACKLOG}.offer",
        old="self.loaded_to = high",
        new="self.loaded_to = last",
        catcher=_test("tests/unit/test_final_above.py", "test_23_what_is_final"),
    ),
    Mutant(
        name="settled-is-loaded-again",
        at=f"{BACKLOG}.offer",
        old="list(above.missing(first, last))",
        new="[(first, last)]",
        catcher=_by("outbox", "settled twice", "final above the cursor, and open"),
    ),
    # --- the inbox
    Mutant(
        name="forgets-marks",
        at=f"{MARKS}.take",
        old="max(after + 1, 1), last",
        new="max(after + 1, 1), last - 1",
        catcher=_by("inbox", "handled, and not in the marks"),
    ),
    Mutant(
        name="marks-a-gap-nobody-declared",
        at=f"{MARKS}.take",
        old="max(after + 1, 1), last",
        new="1, last",
        catcher=_by("inbox", "in the marks, and not handled"),
    ),
    Mutant(
        name="a-run-taken-in-part-is-not-named",
        at=f"{INBOX}.taken",
        old="self.marks.take(after, last, arrival)",
        new="self.marks.take(after, last, arrival if last == arrival.parts[-1][1] else None)",
        catcher=_test("tests/unit/test_inbox.py", "test_6_resume_names_a_run_that_was_taken"),
    ),
    Mutant(
        name="inbox-names-only-what-was-answered",
        at=f"{INBOX}.resume",
        old="if not self._taking or newest is None:",
        new="if True:",
        catcher=_test("tests/unit/test_receiver_restored_log.py", "what_is_being_handled"),
    ),
    Mutant(
        name="the-floor-passes-what-was-given-up",
        at="msgservice.core.marks:raised_floor",
        old="return floor if passed is None else max(floor, min(passed[1] + 1, settled))",
        new="return max(floor, settled)",
        catcher=_by("inbox", "in the marks, and not handled"),
    ),
    Mutant(
        name="being-taken-is-taken",
        at=f"{INBOX}.receive_transfer",
        old="parts = [new for low, high in parts for new in self._taking.missing(low, high)]",
        new="answers.take_over(first, last); parts = []",
        catcher=_by("inbox", "acknowledged and never handled"),
    ),
    Mutant(
        name="given-twice-to-the-handler",
        at=f"{INBOX}.receive_transfer",
        old="if self._taking.firsts and self._taking.overlaps(first, last):",
        new="if False:",
        catcher=_by("inbox", "handled twice", "what the handler has is not what is noted"),
    ),
    Mutant(
        name="rejected-comes-again",
        at=f"{INBOX}.receive_transfer",
        old="if self._rejected:",
        new="if False:",
        catcher=_by("inbox", "handled after it was rejected"),
    ),
    Mutant(
        name="the-lane-goes-on-after-a-nack",
        at=f"{ANSWERS}.receive",
        old="self._taken_back(transfer.nacks, ",
        new="self._taken_back(transfer.nacks + 1, ",
        catcher=_by("inbox", "handled out of order", "answered more often than it came"),
    ),
    Mutant(
        name="answers-what-came-on-another-connection",
        at=f"{ANSWERS}.take_over",
        old="for low, high in received.within(first, last):",
        new="for low, high in [(first, last)]:",
        catcher=_by("inbox", "answered more often than it came", "NeverSent in receive_ack"),
    ),
    # --- what goes past the gate
    Mutant(
        name="a-subject-that-no-rule-allows",
        at="msgservice.node.acceptance:Acceptance.audience",
        old='if not rights.allows("send", subject):',
        new="if False:",
        catcher=_test("tests/unit/test_gate_denies.py -k without_rules", "without_rules"),
    ),
    Mutant(
        name="a-receiver-that-may-not-be-named",
        at="msgservice.node.acceptance:Acceptance.audience",
        old='if not rights.allows("to", name):',
        new="if False:",
        catcher=_test("tests/unit/test_node_intake.py -k may_not_be_named", "may_not_be_named"),
    ),
    Mutant(
        name="what-is-forbidden-is-decided-anew",
        at="msgservice.node.acceptance:Acceptance._audience_now",
        old="if isinstance(batch.refusal, Forbidden):",
        new="if False:",
        catcher=_test("tests/unit/test_node_intake.py -k test_37", "test_37"),
    ),
    Mutant(
        name="an-audience-of-when-it-was-checked",
        at="msgservice.node.intake:Intake.submit",
        old="self._acceptance.decide_again((batch,))",
        new="pass",
        catcher=_test("tests/unit/test_node_intake.py -k submitted", "when_it_is_submitted"),
    ),
    Mutant(
        name="a-hello-is-looked-up-before-it-is-let-in",
        at="msgservice.node.greeting:Greeter.greeted",
        old="channel = connection.channel",
        new="self._receivers.was_removed(hello.name, 1)\n    channel = connection.channel",
        catcher=_test("tests/unit/test_gate_denies.py -k denies_all", "denies_all"),
    ),
    Mutant(
        name="an-answer-to-any-request",
        at="msgservice.node.admin:Admin.ask",
        old='if not (operation.own and who.is_bound) and not who.allows("request", subject):',
        new="if False:",
        catcher=_test("tests/unit/test_gate_denies.py -k asks_nothing", "asks_nothing"),
    ),
    # --- HTTP
    Mutant(
        name="any-name-of-the-web-listener",
        at="msgservice.transport.http.browsers:check_host",
        old="or host in hosts",
        new="or host",
        catcher=_test(f"{HTTP} -k another_site", "another_site_writes"),
    ),
    Mutant(
        name="any-site-may-ask",
        at="msgservice.transport.http.browsers:check_site",
        old="if origin is not None:",
        new="if False:",
        catcher=_test(f"{HTTP} -k another_site", "another_site_writes"),
    ),
    Mutant(
        name="a-cookie-alone-is-a-login",
        at="msgservice.node.web.logins:login_of",
        old="if request.requestHeaders.hasHeader(HEADER.encode())",
        new="if True",
        catcher=_test(f"{LOGINS} -k cookie_alone", "cookie_alone"),
    ),
    Mutant(
        name="a-login-is-used-without-being-asked-for",
        at="msgservice.node.web.logins:Logins._is_over",
        old="now - login.used >= self._limits.http_login_idle",
        new="False",
        catcher=_test(f"{LOGINS} -k not_used", "when_it_is_not_used"),
    ),
    Mutant(
        name="a-login-leaves-the-one-before",
        at="msgservice.node.web.access:Access.log_in",
        old="self.log_out(request)",
        new="pass",
        catcher=_test(f"{LOGINS} -k one_before", "ends_the_one_before"),
    ),
    Mutant(
        name="a-body-in-chunks-without-end",
        at="msgservice.transport.http.channel:HttpRequest.handleContentChunk",
        old="if self.received > self.body_max and self.entering is None:",
        new="if False:",
        catcher=_test(f"{HTTP} -k gigabyte", "gigabyte"),
    ),
    Mutant(
        name="a-byte-at-a-time-is-progress",
        at="msgservice.transport.http.channel:HttpChannel._progress_from",
        old="came >= PROGRESS_BYTES",
        new="came > 0",
        catcher=_test(f"{HTTP} -k body_of_a_byte", "body_of_a_byte"),
    ),
    Mutant(
        name="a-key-of-a-run-says-its-first-message-alone",
        at="msgservice.node.acceptance:_key_use",
        old="for message in messages:",
        new="for message in messages[:1]:",
        catcher=_test(
            "tests/integration/test_http_messages.py -k lines_with_a_key", "lines_with_a_key"
        ),
    ),
    Mutant(
        name="a-run-taken-by-its-key-takes-one-sequence",
        at="msgservice.log.dedupe:_take_by_key",
        old="sender.take(begin, last)",
        new="sender.take(begin, sequence)",
        catcher=_test("tests/contract/test_log_keys.py -k as_a_whole", "as_a_whole"),
    ),
    Mutant(
        name="a-wait-misses-what-is-settled",
        at="msgservice.node.tracker:Tracker.settled",
        old="self._tell_followers(begin)",
        new="pass",
        catcher=_test(f"{EVENTS} -k what_becomes", "what_becomes"),
    ),
    Mutant(
        name="what-is-due-is-not-followed-on",
        at="msgservice.node.tracker:Tracker.routed",
        old="self._tell_followers(WAITING)",
        new="",
        catcher=_test(f"{EVENTS} -k that_is_delayed", "that_is_delayed"),
    ),
    Mutant(
        name="entities-are-taken",
        at="msgservice.core.xmlrpc:_declared",
        old="raise Declared",
        new="return",
        catcher=_test(f"{EVENTS} -k bombs", "bombs"),
    ),
    Mutant(
        name="bodies-that-come-together-have-no-bound",
        at="msgservice.transport.http.channel:HttpRequest.handleContentChunk",
        old="channel.server.held_bytes > channel.limits.http_bytes",
        new="False",
        catcher=_test(
            "tests/integration/test_http_listener.py -k come_together_have", "come_together_have"
        ),
    ),
    Mutant(
        name="an-old-try-of-a-webhook-goes-on",
        at="msgservice.webhooks.endpoint:Endpoint._well",
        old="self._is_trying = False",
        new="pass",
        catcher=_test("tests/unit/test_webhooks.py -k try_that_hangs", "try_that_hangs"),
    ),
    Mutant(
        name="a-long-return-of-xmlrpc-is-none",
        at="msgservice.webhooks.calls:_xmlrpc_verdict",
        old="outline.tags == RETURNED or not is_cut",
        new="not is_cut",
        catcher=_test("tests/unit/test_webhooks.py -k answer_of_xmlrpc", "answer_of_xmlrpc"),
    ),
    Mutant(
        name="an-overtaken-reader-is-not-told",
        at="msgservice.node.web.events:_ViewReader.read",
        old="events.number - place > len(events.ring)",
        new="False",
        catcher=_test(f"{EVENTS} -k overtaken", "overtaken"),
    ),
    Mutant(
        name="a-request-goes-on-without-its-asker",
        at="msgservice.node.web.asking:Asking._ask",
        old="lambda _: asking.cancel()",
        new="lambda _: None",
        catcher=_test("tests/integration/test_http_requests.py -k has_gone", "has_gone"),
    ),
    Mutant(
        name="events-that-are-kept-have-no-bound-in-bytes",
        at="msgservice.node.web.events:Events._keep",
        old="self.ring_bytes > limits.http_event_bytes",
        new="False",
        catcher=_test(f"{EVENTS} -k bounded_in_bytes", "bounded_in_bytes"),
    ),
    Mutant(
        name="bodies-that-are-not-read-have-no-bound",
        at="msgservice.node.web.bodies:_answering",
        old="ask.request.hold(len(part.message))",
        new="pass",
        catcher=_test(
            "tests/integration/test_http_messages.py -k bound_of_those", "bound_of_those"
        ),
    ),
    Mutant(
        name="any-number-of-waits",
        at="msgservice.node.web.messages:Posts._wait_of",
        old="if len(self._waits) >= self._limits.http_waits:",
        new="if False:",
        catcher=_test(f"{EVENTS} -k waits_are_bounded", "waits_are_bounded"),
    ),
    Mutant(
        name="everybody-logs-in-with-any-password",
        at="msgservice.identity.passwords:PasswordRecord.is_of",
        old="return hmac.compare_digest(stored, self.stored_key)",
        new="return True",
        catcher=_test(f"{HTTP} -k who_is_nobody", "who_is_nobody"),
    ),
    Mutant(
        name="the-name-of-anothers-messages",
        at="msgservice.identity.users:Users.may_be_called",
        old='and not name.startswith("http.")',
        new="",
        catcher=_test(f"{HTTP} -k no_name_of_a_user", "no_name_of_a_user"),
    ),
    # --- the node
    Mutant(
        name="ack-before-the-sync",
        at=f"{INGRESS}.received",
        old="if not intake.put(batch, self):",
        new="self.answers.take_over(first, last); self.flush_soon();"
        " self._out += self.status_frames.routed(batch) if self.status_frames else []\n"
        "    if not intake.put(batch, self):",
        catcher=_by("client", "accepted and never stored"),
    ),
    Mutant(
        name="drop-on-full",
        at=f"{INGRESS}._refused",
        old="self._owe_refusal(first, last, lane, delay, error)",
        new="pass",
        catcher=_by("client", "send never fires", "never accepted"),
    ),
    Mutant(
        name="status-before-stored",
        at="msgservice.node.outlet_progress:OutletProgress.take_progress",
        old="settled = self._portion(letters)",
        new="settled = self._portion(letters);"
        " self._tracker.settled(self._row.name, settled); self._tracker.flush()",
        catcher=_by("directory", "told before it was stored"),
    ),
    Mutant(
        name="audience-one-short",
        at="msgservice.node.directory:Directory.audience",
        old="self._matcher.match(subject) - self._suspended",
        new="sorted(self._matcher.match(subject) - self._suspended)[:2]",
        catcher=_by("directory", "another audience than who matches"),
    ),
    Mutant(
        name="paused-gets-messages",
        at="msgservice.node.receivers:Receivers.pause",
        old="self._connections.send_away(outlet, BYE_PAUSED, reason)",
        new="pass",
        catcher=_test("tests/unit/test_node.py tests/unit/test_node_edges.py", "paus"),
    ),
    Mutant(
        name="a-page-without-end",
        at="msgservice.log.queries:_numbers",
        old="number_of(to), each",
        new="1 << 47, each",
        catcher=_test("tests/unit/test_node_late_pages.py", "late_page"),
    ),
    Mutant(
        name="lost-wake-up-of-a-group",
        at="msgservice.node.commits:Commits._go_on",
        old="if self._running or self._held:\n        return",
        new="return",
        catcher=_by("client", "send never fires", "never accepted", "never settled"),
    ),
    Mutant(
        name="a-failed-group-s-progress-is-forgotten",
        at="msgservice.node.outlet_progress:OutletProgress.progress_failed",
        old="self._new = taken.settled + self._new",
        new="pass",
        catcher=_by("directory", "never settled", "unaccounted", "the audit finds something"),
    ),
    Mutant(
        name="an-audience-of-before-the-change",
        at="msgservice.node.commits:Commits._start",
        old="self._audiences.decide_again(group.batches)",
        new="pass",
        catcher=_test("tests/unit/test_node_membership.py", "test_37"),
    ),
    Mutant(
        name="the-names-of-a-set-are-looked-at-for-each-run",
        at="msgservice.node.acceptance:Acceptance._addressed_now",
        old="addressed[key] = found",
        new="pass",
        catcher=_test("tests/unit/test_node_membership.py -k not_for_each_run", "one of them goes"),
    ),
    Mutant(
        name="what-receivers-hold-has-no-common-bound",
        at="msgservice.node.supply:Supply._load_pages",
        old="if size <= 0:",
        new="if False:",
        catcher=_test(
            "tests/unit/test_loaded_bytes.py -k no_more_than_one_limit", "no_more_than_one_limit"
        ),
    ),
    Mutant(
        name="nobody-looks-for-room-again",
        at="msgservice.node.outlet:Outlet.pump",
        old="if supply.is_short and self._waits_for_room:",
        new="if False:",
        catcher=_test("tests/unit/test_loaded_bytes.py -k waits_alone", "waits_alone"),
    ),
    Mutant(
        name="a-receiver-has-no-part-of-its-own",
        at="msgservice.node.loaded_bytes:Share.look",
        old="left = loaded.least",
        new="left = 2",
        catcher=_test("tests/unit/test_loaded_bytes.py -k beside_any_number", "beside_any_number"),
    ),
    Mutant(
        name="who-follows-is-fed-beyond-its-part",
        at="msgservice.node.supply:Supply.look",
        old="if room <= 0 and self.state is FOLLOWS:",
        new="if False:",
        catcher=_test("tests/unit/test_loaded_bytes.py -k a_follower_that", "a_follower_that"),
    ),
    Mutant(
        name="room-is-kept-for-who-left-where-it-is-short",
        at="msgservice.node.outlet:Outlet.detach",
        old="UNLOAD_AFTER if self.supply.look() > 0 else 0.0",
        new="UNLOAD_AFTER",
        catcher=_test("tests/unit/test_loaded_bytes.py -k leave_make_room", "leave_make_room"),
    ),
    Mutant(
        name="a-client-sends-a-window-in-one-turn",
        at="msgservice.client.hop:NodeHop.pump",
        old="runs_max=TURN_RUNS",
        new="runs_max=1 << 30",
        catcher=_test("tests/bounds/test_small_runs.py -k a_client_sends", "a_client_sends"),
    ),
    Mutant(
        name="lanes-that-nobody-asks-for-get-a-queue-each",
        at="msgservice.core.stuck_lanes:StuckLanes._indexed",
        old="fronts = self.fronts = {**by_lane}",
        new="fronts = self.fronts = {}\n"
        "        for name, runs in by_lane.items():\n"
        "            fronts[name] = OpenRuns()\n"
        "            fronts[name].add_all(runs)",
        catcher=_test("tests/bounds/test_deep_lanes.py -k each_other_lane", "each_other_lane"),
    ),
    Mutant(
        name="a-set-without-a-place-is-overtaken",
        at="msgservice.node.acceptance:Acceptance.decide_again",
        old="refusal: Refused | LimitReached | LogFull | None = held.get(lane)",
        new="refusal: Refused | LimitReached | LogFull | None = None",
        catcher=_test("tests/unit/test_node_membership.py -k no_place", "holds_its_lane"),
    ),
    Mutant(
        name="names-of-who-came-meanwhile-are-not-counted",
        at="msgservice.node.ingress:Ingress.stored",
        old="if audience.number not in frames.named and not self._names(audience):",
        new="if False:",
        catcher=_test(
            "tests/unit/test_connection_reading.py -k while_they_wait", "while_they_wait"
        ),
    ),
    Mutant(
        name="a-resume-before-the-hello",
        at="msgservice.core.session:Session._take_hello",
        old="self.state = State.RESUMING if self._hello_sent else State.GREETED",
        new="self.state = State.RESUMING",
        catcher=_test("tests/unit/test_node_greeting.py -k ResumeFrame", "may_not_come_yet"),
    ),
    Mutant(
        name="what-is-no-frame-counts-as-in-flight",
        at="msgservice.client.hop:NodeHop._send_transfers",
        old="self._send_each(connection, flight, transfers)",
        new="raise",
        catcher=_test("tests/unit/test_text_classes.py -k fails_alone", "fails_alone"),
    ),
    # --- the log
    Mutant(
        name="retention-too-early",
        at="msgservice.log.places:settled_to",
        old="settled = PINNED",
        new="return PINNED",
        catcher=_test("tests/contract/test_log_retention.py", "test_"),
    ),
    Mutant(
        name="history-that-is-waited-for-gives-way",
        at="msgservice.log.places:Places._gives_way_below",
        old="waited_for = self.first_waited_for()",
        new="waited_for = PINNED",
        catcher=_test("tests/contract/test_log_retention.py", "behind_what_is_waited_for"),
    ),
    Mutant(
        name="history-gives-way-once-a-minute",
        at="msgservice.log.retention:Retention._is_time_to_tidy",
        old="if not wanted or since < places.looked_for_after:",
        new="if True:",
        catcher=_test("tests/contract/test_log_retention.py -k test_19", "seconds_after_it_was"),
    ),
    Mutant(
        name="being-here-counts-more-than-having-sent",
        at="msgservice.log.senders:Senders._put_to_sleep",
        old="self._seen(senders[key])",
        new="self._heard[key]",
        catcher=_test("tests/contract/test_log_retention.py -k test_5_who", "after_he_was_last"),
    ),
    Mutant(
        name="a-row-keeps-its-page",
        at="msgservice.log.removal:_drop_batches",
        old="(_MOVE_AWAY, ",
        new="(_CLEAR, ",
        catcher=_test("tests/contract/test_log_rows.py -k behind_an_open", "its_own_bytes_only"),
    ),
    Mutant(
        name="dedupe-without-incarnation",
        at="msgservice.log.state:Staged.sender",
        old="committed = self.state.senders.get(key)",
        new="known = [s for k, s in self.state.senders.items() if k[0] == key[0]];"
        " committed = known[0] if known else None",
        catcher=_by("client", "accepted and never stored"),
    ),
    Mutant(
        name="an-entry-is-applied-twice",
        at="msgservice.log.store:Store.apply",
        old="if entry.number != state.next_number or entry.commits != state.commits:",
        new="if entry.number > state.next_number or entry.commits > state.commits:",
        catcher=_test("tests/unit/test_log_entries.py -k entry_that_the_log_has", "is_known"),
    ),
    # --- keys and retained messages
    Mutant(
        name="a-known-key-is-stored-again",
        at="msgservice.log.dedupe:_take_by_key",
        old="of = keyed.known.get(batch.key.digest)",
        new="of = None",
        catcher=_test("tests/contract/test_log_keys.py -k stored_once", "stored_once"),
    ),
    Mutant(
        name="a-key-holds-for-any-content",
        at="msgservice.log.dedupe:_take_by_key",
        old="of.content != batch.key.content",
        new="False",
        catcher=_test("tests/contract/test_log_keys.py -k another_content", "another_content"),
    ),
    Mutant(
        name="a-known-key-is-stored-again-where-a-floor-makes-room",
        at="msgservice.log.dedupe:_take_by_key",
        old="if batch.floor > sender.floor:",
        new="if False:",
        catcher=_test("tests/contract/test_log_keys.py -k floor_makes_room", "floor_makes_room"),
    ),
    Mutant(
        name="a-known-key-does-not-wait-for-ranges",
        at="msgservice.log.dedupe:_take_by_key",
        old="if _has_no_range(sender, begin, last, ranges_max):",
        new="if False:",
        catcher=_test("tests/contract/test_log_keys.py -k known_key_waits", "known_key_waits"),
    ),
    Mutant(
        name="what-a-key-has-taken-is-forgotten-by-a-crash",
        at="msgservice.log.staging:stage_keys",
        old="operations.append((_SAVE_SENDERS, (as_json(saved_marks(keyed.senders.values())),)))",
        new="pass",
        catcher=_test("tests/unit/test_log_entries.py -k after_a_cut", "after_a_cut"),
    ),
    Mutant(
        name="whoever-comes-second-with-a-key-hears-nothing-later",
        at="msgservice.node.tracker:Tracker.settled",
        old="self._settled_by_key(begin, state)",
        new="pass",
        catcher=_test("tests/unit/test_node_keys.py -k told_to_each", "told_to_each"),
    ),
    Mutant(
        name="an-older-message-of-a-subject-is-retained",
        at="msgservice.log.dedupe:take_batches",
        old="staged.retained[subject] = item",
        new="staged.retained.setdefault(subject, item)",
        catcher=_test("tests/contract/test_log_retained.py -k number_order", "number_order"),
    ),
    Mutant(
        name="what-is-on-its-way-is-not-retained-yet-for-who-joins",
        at="msgservice.node.retained:RetainedIndex.is_for",
        old="any(wanted.match(subject) == {True} for subject in self._coming)",
        new="False",
        catcher=_test("tests/unit/test_node_retained.py -k neither_lost", "neither_lost"),
    ),
    Mutant(
        name="an-entry-looks-at-the-clock",
        at="msgservice.log.removal:_finish",
        old="reason, staged.age)",
        new="reason, __import__('time').monotonic_ns())",
        catcher=_test("tests/unit/test_log_entries.py -k two_logs", "are_equal"),
    ),
    Mutant(
        name="the-number-of-a-forgotten-sender-is-given-again",
        at="msgservice.log.loading:_load_senders",
        old="state.next_sender = used + 1",
        new="pass",
        catcher=_test("tests/unit/test_log_entries.py -k two_logs", "are_equal"),
    ),
    Mutant(
        name="what-was-heard-is-not-kept",
        at="msgservice.log.staging:stage_statuses_from",
        old="sender.status_from = wanted.status_from",
        new="sender.status_from = wanted.status_from; operations.append("
        "('delete from finished where sender = ? and last < ?', (sender.id, wanted.status_from)))",
        catcher=_test("tests/contract/test_log_retention.py -k test_54", "producer_has_heard"),
    ),
    Mutant(
        name="ids-go-with-their-batches",
        at="msgservice.log.removal:_drop_batches",
        old="(_KEEP_IDS, (BATCH_INDEX_BITS, staged.age, below)),",
        new="",
        catcher=_test("tests/contract/test_log_retention.py -k test_54", "an_id_lives"),
    ),
    Mutant(
        name="states-go-with-their-sender",
        at="msgservice.log.removal:_forget_senders",
        old="(_KEEP_FORMER, (*ids, staged.age)),",
        new="('delete from finished where sender in (select value from json_each(?))', ids),",
        catcher=_test("tests/unit/test_finished.py -k forgotten", "leaves_what_became"),
    ),
    Mutant(
        name="states-that-a-producer-wants-go-early",
        at="msgservice.log.retention:Retention._forget_states",
        old="heard=True",
        new="heard=False",
        catcher=_test("tests/unit/test_finished.py -k bounded", "is_bounded"),
    ),
    Mutant(
        name="retention-beside-the-door",
        at="msgservice.log.senders:Senders._put_to_sleep",
        old="self._heard.clear()",
        new="store.transact([('delete from finished where at < 0', ())]); self._heard.clear()",
        catcher=_test("tests/unit/test_log_entries.py -k beside_the_door", "beside_the_door"),
    ),
    Mutant(
        name="the-second-of-a-full-group-is-stored",
        at="msgservice.log.dedupe:take_batches",
        old="outcomes.append(RefusedBatch(full))\n                continue",
        new="outcomes.append(RefusedBatch(full)); full = None\n                continue",
        catcher=_test("tests/contract/test_log.py", "takes_the_rest_of_the_group"),
    ),
    Mutant(
        name="a-repeat-walks-all-that-its-group-stores",
        at="msgservice.log.state:Staged.fresh_between",
        old="for batch in chain(self.fresh[self._fresh_known :], delayed):",
        new="self._fresh_of = {}\n    for batch in self.fresh:",
        catcher=_test("tests/bounds/test_senders.py", "again in one group"),
    ),
    Mutant(
        name="a-repeat-of-a-part-takes-all-of-its-run-apart",
        at="msgservice.log.repeats:Repeats.agree",
        old="if changed is None:",
        new="if True:",
        catcher=_test("tests/unit/test_log_dedupe.py", "cost_one_look_at_it_for_a_group"),
    ),
    Mutant(
        name="a-repeat-of-a-part-asks-for-its-run-again",
        at="msgservice.log.repeats:Repeats.stored_between",
        old="if at >= 0 and last <= known[at].last:",
        new="if False:",
        catcher=_test("tests/unit/test_log_dedupe.py", "cost_one_look_at_it_for_a_group"),
    ),
    Mutant(
        name="a-repeat-that-ends-inside-a-run-is-not-compared",
        at="msgservice.log.repeats:Repeats._compare",
        old="changed.add(batch)",
        new="pass",
        catcher=_test("tests/unit/test_log_dedupe.py", "other_content_is_noticed"),
    ),
    Mutant(
        name="a-range-is-looked-up-in-each-set",
        at="msgservice.log.accounts:Page._inside",
        old="short_max = SCANNED_EACH * len(audiences)",
        new="short_max = -1",
        catcher=_test("tests/unit/test_log_accounts.py", "do_not_multiply"),
    ),
    Mutant(
        name="ranges-that-do-not-fit-a-page-are-none",
        at="msgservice.log.accounts:_final_of",
        old="whole = whole[: whole.index(found[-1][0])]",
        new="pass",
        catcher=_test("tests/unit/test_log_accounts.py", "in_many_sets_are_exact"),
    ),
    Mutant(
        name="each-judgement-adds-up-all-sets",
        at="msgservice.node.dispatch:Dispatch.judge",
        old="if (queued.beyond_total + total) * 2 < limit and not row.suspended:",
        new="if queued.look() * 2 < limit and not row.suspended:",
        catcher=_test("tests/unit/test_node_backlogs.py", "one_look_each"),
    ),
    Mutant(
        name="who-comes-near-its-limit-is-not-looked-at",
        at="msgservice.node.dispatch:Dispatch.judge",
        old="if (queued.beyond_total + total) * 2 < limit and not row.suspended:",
        new="if queued.at_least * 2 < limit and not row.suspended:",
        catcher=_test("tests/unit/test_node_backlogs.py -k is_too_far_behind", "is_too_far_behind"),
    ),
    Mutant(
        name="a-removal-tells-all-history-again",
        at="msgservice.node.tracker:Tracker.receiver_removed",
        old="watch.removed.append(number)",
        new="watch.missed = (watch.status_from, 2**53)",
        catcher=_test("tests/unit/test_node_removal.py", "and_nothing_else"),
    ),
    Mutant(
        name="each-state-that-ends-cuts-what-has-gone",
        at="msgservice.node.tracker:_gone_pieces",
        old="for first, last in ranges:",
        new="for first, last in [(s.first, s.last) for s in page.states]:",
        catcher=_test("tests/unit/test_node_gone.py -k one_piece_as_long", "one_piece_as_long"),
    ),
    Mutant(
        name="a-cut-reads-the-whole-run",
        at="msgservice.log.dedupe:_cut",
        old="messages = parts.run(start, stop)",
        new="messages = MessageParts(batch.messages).run(start, stop)",
        catcher=_test("tests/bounds/test_senders.py", "holes filled by one run"),
    ),
    Mutant(
        name="a-hole-that-is-filled-copies-all-ranges",
        at="msgservice.core.marks:SenderState.take",
        old="((_, joined),) = ranges.lowest(1)",
        new="joined = next(iter(ranges))[1]",
        catcher=_test("tests/bounds/test_senders.py", "holes filled each"),
    ),
    Mutant(
        name="a-run-taken-in-part-is-refused-whole",
        at="msgservice.log.dedupe:_take_refused",
        old="if left == [(first, last)] or (left and not isinstance(refusal, Refused)):",
        new="if left:",
        catcher=_test("tests/unit/test_log_dedupe.py -k whatever", "whatever_is_refused"),
    ),
    Mutant(
        name="work-of-another-order-goes-on",
        at="msgservice.receiver.handling.engine:Handling.reconnected",
        old="if is_changed or node.is_changing:",
        new="if False:",
        catcher=_test("tests/unit/test_receiver_lanes.py -k none_to_strict", "none_to_strict"),
    ),
    Mutant(
        name="what-was-refused-counts-as-acknowledged",
        at="msgservice.client.acked:Acked.close_holes",
        old="ranges.add(ranges.first or 1, said[1])",
        new="ranges.add(ranges.first or 1, newest)",
        catcher=_test("tests/unit/test_client_acked.py -k not_missed", "not_missed"),
    ),
    Mutant(
        name="what-waited-once-waits-below-the-cursor",
        at="msgservice.log.history:segments",
        old="if at <= cursor and not row.status.final:",
        new="if False:",
        catcher=_test("tests/contract/test_log.py", "the_cursor_has_passed_is_settled"),
    ),
    Mutant(
        name="history-goes-for-rows-that-stay",
        at="msgservice.log.retention:Retention._rows_go_below",
        old="return self.places.first_waited_for()",
        new="return PINNED",
        catcher=_test("tests/contract/test_log_rows.py -k only_where", "rows_go_with_it"),
    ),
    Mutant(
        name="a-crowd-is-looked-at-each-minute",
        at="msgservice.log.senders:Senders._is_time_to_look",
        old="return away > crowd or",
        new="return False and",
        catcher=_test("tests/contract/test_log_retention.py -k crowd", "seen_when_it_comes"),
    ),
    Mutant(
        name="attempts-of-the-rest-are-not-noted",
        at=f"{BACKLOG}.split",
        old="if rest.attempts:",
        new="if rest.attempts and self._open.lowest() is not run:",
        catcher=_test("tests/unit/test_node_attempts.py -k outlive", "a_run_outlive"),
    ),
    Mutant(
        name="attempts-of-what-many-ranges-cut-are-not-noted",
        at=f"{BACKLOG}._cut_at",
        old="if run.attempts:",
        new="if False:",
        catcher=_test("tests/unit/test_node_attempts.py -k outlive", "a_run_outlive"),
    ),
    Mutant(
        name="a-stale-attempt-takes-the-row-of-what-was-acknowledged",
        at="msgservice.node.outlet_progress:OutletProgress.take_progress",
        old="*self._failed_rows(failed, cursor), *self._acked_rows(above), *rows",
        new="*self._acked_rows(above), *self._failed_rows(failed, cursor), *rows",
        catcher=_test("tests/unit/test_node_attempts.py -k outlive", "a_run_outlive"),
    ),
    Mutant(
        name="what-could-not-be-noted-counts-as-noted",
        at="msgservice.disk.pages:PageSums._take",
        old="self._known = known._replace(frames=0)",
        new="pass",
        catcher=_test(
            "tests/unit/test_pages.py::"
            "test_where_the_sums_cannot_be_given_up_either_the_log_goes_on",
            "test_where_the_sums_cannot_be_given_up_either_the_log",
        ),
    ),
    Mutant(
        name="index-is-mapped-where-mapped-memory-is-not-safe",
        at="msgservice.disk.database:connect",
        old='"unix-excl" if is_alone else vfs',
        new="vfs",
        catcher=_test(
            "tests/unit/test_files_read_by_others.py::"
            "test_the_connections_of_one_process_share_an_index_that_no_file_holds",
            "test_the_connections_of_one_process",
        ),
    ),
    # --- acknowledged UDP
    Mutant(
        name="each-ask-looks-through-all-replies",
        at="msgservice.core.datagram.receiver:ReceivingHalf.receive_ask",
        old="self.ack_now = True",
        new="self.ack_now = True; self.answer_asked()",
        catcher=_test("tests/bounds/test_datagrams.py", "full_of_each_kind_of_block"),
    ),
    Mutant(
        name="what-is-handled-is-walked-over-again",
        at="msgservice.core.datagram.sender:SendingHalf._behind_settled",
        old="step, chunk.step = chunk.step, at - start",
        new="step = chunk.step",
        catcher=_test("tests/bounds/test_datagrams.py", "full_of_each_kind_of_block"),
    ),
    Mutant(
        name="replies-pile-up-unread",
        at="msgservice.transport.udp.handler:Handling.deliver",
        old="unread_max = receiving.reply_bytes_max",
        new="unread_max = 1 << 60",
        catcher=_test("tests/unit/test_datagram_peer.py -k reads_no_replies", "reads_no_replies"),
    ),
    Mutant(
        name="who-reads-nothing-is-handed-on",
        at="msgservice.core.datagram.endpoint:Endpoint._has_read",
        old="return receiving.reply_bytes <= receiving.reply_bytes_max",
        new="return True",
        catcher=_test(
            "tests/simulation/test_datagram_hostile.py -k reads_no_replies", "reads_no_replies"
        ),
    ),
    Mutant(
        name="strangers-have-the-whole-window",
        at="msgservice.core.datagram.limits:DatagramLimits.at_first",
        old="if not size:",
        new="if size:",
        catcher=_test("tests/unit/test_datagram_strangers.py", "stranger"),
    ),
    Mutant(
        name="junk-spends-the-hellos-of-others",
        at="msgservice.core.datagram.handshake:Handshakes.__init__",
        old="self._hellos = Budget(limits.strangers_per_second)",
        new="self._hellos = Budget(limits.handshakes_per_second)",
        catcher=_test("tests/simulation/test_datagram_hostile.py -k flood_of", "flood_of_hellos"),
    ),
    Mutant(
        name="the-end-is-said-before-the-rest",
        at="msgservice.core.datagram.endpoint:Endpoint.close",
        old="session.take_end(now)",
        new="session.take_end(now)[-1:]",
        catcher=_test("tests/unit/test_datagram_packing.py -k is_closed", "is_closed_tells_all"),
    ),
    Mutant(
        name="cookie-not-checked",
        at="msgservice.core.datagram.cookie:CookieJar.check",
        old="return hmac.compare_digest(",
        new="return True or hmac.compare_digest(",
        catcher=_test(
            "tests/simulation/test_datagram_hostile.py::"
            "test_a_cookie_serves_its_own_address_session_and_time_only",
            "cookie",
        ),
    ),
    # --- requests
    Mutant(
        name="reply-to-the-wrong-request",
        at="msgservice.client.requests:Requests.replied",
        old="call = sent.get(number)",
        new="call = sent.get(min(sent, default=0))",
        catcher=_test("tests/unit/test_client_requests.py", "answers_in_any_order"),
    ),
    # --- the client
    Mutant(
        name="room-is-not-given-back",
        at="msgservice.client.flow:Flow.settled",
        old="self.room_messages += count",
        new="self.room_messages += count - (count > 1)",
        catcher=_by("client", "unanswered is not 0"),
    ),
    Mutant(
        name="outbox-file-forgets-what-is-not-answered",
        at="msgservice.client.outbox_file:OutboxFile.settle",
        old="for first, last in ranges:",
        new="for first, last in [(first, last + 1) for first, last in ranges]:",
        catcher=_by("client", "accepted and never stored"),
    ),
    # --- receipts that survive
    Mutant(
        name="receipts-are-not-written-with-their-run",
        at="msgservice.client.outbox_file:OutboxFile._start",
        old="receipt_rows.insert(runs, self.now()) if self.receipts_max and runs else []",
        new="[]",
        catcher=_by("client", "a receipt is lost"),
    ),
    Mutant(
        name="states-of-open-receipts-are-not-wanted",
        at="msgservice.client.hop:NodeHop._status_from",
        old="None if self._disk is None else self._disk.receipts_from",
        new="None",
        catcher=_by("client", "a receipt is lost"),
    ),
    Mutant(
        name="receipts-that-were-left-go-before-they-are-told",
        at="msgservice.client.open_receipts:OpenReceipts._end",
        old="for low, high in self.left.missing(first, last):",
        new="for low, high in [(first, last)]:",
        catcher=_by("client", "a receipt is lost"),
    ),
    Mutant(
        name="receipts-go-when-one-receiver-is-done",
        at="msgservice.client.open_receipts:OpenReceipts._over",
        old="for name in names:",
        new="for name in names[:1]:",
        catcher=_test("tests/unit/test_open_receipts.py", "final_everywhere_and_never_before"),
    ),
    Mutant(
        name="what-is-listed-is-not-told-again",
        at="msgservice.client.hop:NodeHop._give_out",
        old="if disk.receipts.give_out(parts, keep=keep) or is_new:",
        new="if disk.receipts.give_out(parts, keep=keep) is None:",
        catcher=_test("tests/unit/test_client_survival.py", "test_53_"),
    ),
    Mutant(
        name="receipts-that-were-told-stay",
        at="msgservice.client.disk:DiskOutbox.flush",
        old="if gone:",
        new="if not gone:",
        catcher=_test("tests/unit/test_client_survival.py", "test_53_"),
    ),
    Mutant(
        name="receipts-go-before-their-promise-is-decided",
        at="msgservice.client.open_receipts:OpenReceipts._over",
        old="for still in (self._unanswered, self._promised):",
        new="for still in (self._unanswered,):",
        catcher=_test("tests/unit/test_open_receipts.py", "final_everywhere_and_never_before"),
    ),
    Mutant(
        name="a-receipt-of-before-knows-no-promise",
        at="msgservice.client.disk:DiskOutbox.taken_up",
        old="promise=row.promise",
        new="promise=None",
        catcher=_test("tests/unit/test_client_survival.py", "outcome_of_a_promise"),
    ),
    Mutant(
        name="a-refusal-is-not-kept",
        at="msgservice.client.disk:DiskOutbox.refused",
        old="if self.file.receipts:",
        new="if False:",
        catcher=_test("tests/unit/test_client_survival.py", "a_refusal_that_nobody_asked_for"),
    ),
    Mutant(
        name="what-an-incarnation-lost-is-not-kept-with-the-next",
        at="msgservice.client.outbox_file:OutboxFile.renew",
        old="self._commit([renewed], steps)",
        new="self._commit([renewed])",
        catcher=_test("tests/unit/test_client_survival.py", "went_back_is_told_after"),
    ),
    Mutant(
        name="a-row-that-was-half-listed-is-told-whole",
        at="msgservice.client.open_receipts:OpenReceipts.give_out",
        old="for first, last in given:",
        new="for first, last in [(1, 2**60)] if given else []:",
        catcher=_test("tests/unit/test_client_survival.py", "half_a_row"),
    ),
    # --- faults that this service had
    Mutant(
        name="an-answer-is-owed-to-what-came-first",
        at=f"{ANSWERS}.discards",
        old="discarding is not None and discarding[1] < first",
        new="discarding is not None",
        catcher=_test(
            "tests/unit/test_node_refusals.py", "late_refusal_behind_one_at_the_door_is_answered"
        ),
    ),
    Mutant(
        name="restored-outbox-compared-at-equal-cuts-only",
        at="msgservice.client.hop:NodeHop._differs",
        old="return at > last and zlib.crc32(join_messages(parts)) != crc",
        new="return False",
        catcher=_test("tests/unit/test_client_disk.py", "test_6_an_older_copy_gives_sequences"),
    ),
    Mutant(
        name="outbox-file-forgets-who-waits-behind-a-failed-sync",
        at="msgservice.client.outbox_file:OutboxFile._start",
        old="behind, self._waiting = self._waiting, []",
        new="behind = []",
        catcher=_test("tests/unit/test_outbox_file.py", "what_waits_behind_a_failed_sync"),
    ),
    Mutant(
        name="no-new-incarnation-for-want-of-room",
        at="msgservice.client.hop:NodeHop._not_renewed",
        old="if not self._is_stopped:",
        new="if False:",
        catcher=_test("tests/unit/test_client_disk.py", "taken_when_there_is_some"),
    ),
    Mutant(
        name="stored-inbox-goes-on-behind-a-commit-that-failed",
        at="msgservice.receiver.inbox.file:InboxFile._committed",
        old="entry.gate.is_shut = True",
        new="pass",
        catcher=_test("tests/unit/test_receiver_inbox.py", "written_before_what_found_no_room"),
    ),
    Mutant(
        name="stored-inbox-fails-by-a-statement-of-a-handler",
        at="msgservice.receiver.inbox.file:InboxFile._guarded_call",
        old="isinstance(lost, apsw.ConstraintError)",
        new="lost is transaction",
        catcher=_test("tests/unit/test_inbox_file.py", "rolls_the_transaction_back_fails_alone"),
    ),
    Mutant(
        name="stored-inbox-fails-by-a-handler-that-exits",
        at="msgservice.receiver.inbox.file:InboxFile._guarded_call",
        old="except BaseException",
        new="except Exception",
        catcher=_test("tests/unit/test_receiver_inbox.py", "exits_fails_like_any_other"),
    ),
    Mutant(
        name="file-with-a-hard-link-is-opened",
        at="msgservice.disk.folder:check_names",
        old="found.st_nlink > 1",
        new="False",
        catcher=_test("tests/unit/test_other_names.py", "has_another_name_is_refused"),
    ),
    Mutant(
        name="generator-counts-as-handled",
        at="msgservice.receiver.handling.engine:Handling._step_each",
        old="isinstance(result, UNFINISHED)",
        new="isinstance(result, (Deferred, CoroutineType))",
        catcher=_test("tests/unit/test_receiver.py", "returns_a_generator_has_not_run"),
    ),
    Mutant(
        name="fault-behind-a-handler-is-swallowed",
        at="msgservice.receiver.handling.engine:Handling._call_ended",
        old="self._end_failed(call)",
        new="pass",
        catcher=_test("tests/unit/test_receiver_faults.py -k later", "fault_at_the_end"),
    ),
    Mutant(
        name="stored-inbox-commits-behind-a-rollback",
        at="msgservice.receiver.inbox.transaction:Transaction._connection",
        old="if self.lost is not None:",
        new="if self._db is None:",
        catcher=_test("tests/unit/test_inbox_file.py", "rolls_the_transaction_back_fails_alone"),
    ),
    Mutant(
        name="removed-receiver-handles-what-it-had",
        at="msgservice.receiver.handling.engine:Handling.removed",
        old="self._end_lanes(node)",
        new="pass",
        catcher=_test("tests/unit/test_receiver_removed.py", "test_10_"),
    ),
    Mutant(
        name="removed-while-away-is-made-anew",
        at="msgservice.node.directory:Directory.was_removed",
        old="row is None or (row.removed and row.name == name)",
        new="False",
        catcher=_test("tests/unit/test_receiver_removed.py", "told_so_and_not_made_anew"),
    ),
    Mutant(
        name="connector-forgets-that-it-was-started-again",
        at="msgservice.transport.dialling:Connector._end",
        old="if wanted:",
        new="if False:",
        catcher=_test("tests/unit/test_dialling.py", "started_while_it_closes"),
    ),
    Mutant(
        name="the-last-of-a-run-is-not-told-when-the-receiver-stops",
        at="msgservice.receiver.handling.engine:Handling._give_up",
        old="self._tell(work)",
        new="work.at < work.stop and self._tell(work)",
        catcher=_test("tests/unit/test_receiver_life.py", "started_again_while_it_stops"),
    ),
    Mutant(
        name="ages-by-the-wall-clock",
        at="msgservice.node.upkeep:Upkeep._retain",
        old="int(self._time.now() * 1000)",
        new="self._time.wall()",
        catcher=_by("client", "stored twice"),
    ),
    Mutant(
        name="a-sender-that-sleeps-is-new",
        at="msgservice.log.state:State.sender",
        old="if known is None and key in self.asleep:",
        new="if False:",
        catcher=_test("tests/contract/test_log_retention.py -k sleep", "that_sleep_are_known"),
    ),
    Mutant(
        name="quiet-is-away",
        at="msgservice.log.senders:Senders.note",
        old="for key in here:",
        new="for key in ():",
        catcher=_test("tests/contract/test_log_retention.py", "not_away_however_quiet"),
    ),
    Mutant(
        name="send-never-fires-where-all-has-gone",
        at="msgservice.node.tracker:Tracker._news",
        old="in page.gone:",
        new="in ():",
        catcher=_by("client", "send never fires", "never accepted"),
    ),
    Mutant(
        name="an-inverted-range-is-believed",
        at="msgservice.core.frames:wrong_ranges",
        old="if not above < first <= last:",
        new="if not above < first:",
        catcher=_by(
            "outbox",
            "an answer about what was not sent is believed",
            "an empty range is settled",
        ),
    ),
    Mutant(
        name="origin-from-anybody",
        at="msgservice.node.acceptance:_path_of",
        old="if origin is not None:",
        new="if False:",
        catcher=_test("tests/unit/test_node_refusals.py", "test_60_what_only_nodes_say"),
    ),
    Mutant(
        name="removal-before-its-progress",
        at="msgservice.log.staging:stage_removals",
        old="for step in group.progress:",
        new="for step in ():",
        catcher=_test(
            "tests/contract/test_log.py -k group_of_its_removal",
            "group_of_its_removal_stays_settled",
        ),
    ),
    Mutant(
        name="a-refused-hello-has-changed-things",
        at="msgservice.node.receivers:Receivers.attaching",
        old="self._connections.hold_check(outlet)",
        new="self._directory.set_patterns(row, patterns or row.patterns);"
        " self._connections.hold_check(outlet)",
        # The machine seldom comes so often that a name is held.
        catcher=_test(
            "tests/unit/test_node_admission.py -k held_changes_nothing",
            "the_name_is_held_changes_nothing",
        ),
    ),
    Mutant(
        name="history-does-not-give-way",
        at="msgservice.log.retention:Retention.give_way",
        old="if store.failed is not None or",
        new="if True or",
        # Retention makes the same room a second later: a machine sees no difference.
        catcher=_test("tests/unit/test_node_room.py", "nobody_waits_for_gives_way"),
    ),
    Mutant(
        name="dead-letters-of-the-removed-stay",
        at="msgservice.log.retention:Retention._remove_dead_letters",
        old="ready = self._spent_letters()",
        new="return False",
        catcher=_test("tests/contract/test_log_retention.py", "go_with_their_receiver"),
    ),
    Mutant(
        name="audiences-pass-their-limit-in-one-read",
        at="msgservice.log.base:StoreLog._forget_unused",
        old="not found.stored and not found.waiting",
        new="not found.stored",
        catcher=_test(
            "tests/contract/test_log_retention.py -k waits_to_be_stored", "waits_to_be_stored"
        ),
    ),
    Mutant(
        name="removed-receivers-are-kept-for-ever",
        at="msgservice.log.retention:Retention._unreferred_receivers",
        old="picked = sorted(removed)[:FORGET_MAX]",
        new="picked = []",
        catcher=_test("tests/contract/test_log_retention.py", "removed_receivers_are_forgotten"),
    ),
    Mutant(
        name="what-is-settled-last-of-a-batch-is-what-it-is-taken-to-be",
        at="msgservice.node.stored_bytes:SplitBytes.settle",
        old="return part.of_size - settled",
        new="return part.size",
        catcher=_test(
            "tests/unit/test_node_queued.py", "of_a_batch_that_is_cancelled_in_part_nothing_is_left"
        ),
    ),
    Mutant(
        name="what-was-settled-of-batches-before-a-start-is-forgotten",
        at="msgservice.node.dispatch:Dispatch.begin",
        old="progress.split.begin(account.split)",
        new="",
        catcher=_test(
            "tests/unit/test_node_queued.py -k of_many_batches",
            "of_many_batches_that_were_settled_in_part_before_a_start_nothing_is_left",
        ),
    ),
    Mutant(
        name="settled-above-a-stuck-one-is-backlog",
        at="msgservice.log.accounts:Page.waiting",
        old="size -= self._settled_bytes(settled, split_max, split)",
        new="",
        catcher=_test(
            "tests/contract/test_log.py -k counted_exactly", "what_waits_is_counted_exactly"
        ),
    ),
    Mutant(
        name="who-does-not-read-is-read",
        at="msgservice.connection:Connection.has_room",
        old="return self.is_writable and (",
        new="return True or (",
        catcher=_test(
            "tests/unit/test_connection_reading.py",
            "a_peer_that_does_not_read_its_answers_is_not_read",
        ),
    ),
    Mutant(
        name="what-strangers-say-is-bounded-for-each-frame",
        at="msgservice.connection:Connection._count_before_open",
        old="self._before_open += size",
        new="self._before_open = size",
        catcher=_test("tests/unit/test_connection_reading.py -k bounded_in_all", "bounded_in_all"),
    ),
    Mutant(
        name="a-resume-without-end",
        at="msgservice.core.session:Session._take_resume",
        old="if self._ranges_said > self.ranges_max:",
        new="if False:",
        catcher=_test("tests/unit/test_connection_reading.py", "ranges_of_a_resume_are_bounded"),
    ),
    Mutant(
        name="what-is-refused-for-room-comes-again-at-once",
        at=f"{INGRESS}._refused",
        old="isinstance(error, LogFull | LimitReached)",
        new="isinstance(error, LogFull)",
        catcher=_test("tests/unit/test_node_ranges.py", "one_run_too_many"),
    ),
    Mutant(
        name="every-goodbye-ends-an-incarnation",
        at="msgservice.node.peer:Peer.peer_leaves",
        old="code == BYE_SETTLED",
        new="True",
        catcher=_test("tests/unit/test_node_room.py", "ends_no_incarnation"),
    ),
    Mutant(
        name="all-of-a-resume-is-kept",
        at="msgservice.core.session:Session._take_resume",
        old="del self._ranges[self.ranges_kept - 1 : -1]",
        new="pass",
        catcher=_test("tests/unit/test_connection_reading.py", "ranges_of_a_resume_are_bounded"),
    ),
    Mutant(
        name="only-whole-frames-are-a-sign-of-life",
        at="msgservice.connection:Connection._fire",
        old="session.heard(self.channel.heard_at)",
        new="pass",
        catcher=_test("tests/unit/test_connection_reading.py", "part_of_a_frame_is_a_sign_of_life"),
    ),
    Mutant(
        name="rows-of-a-group-are-swept-for-each",
        at="msgservice.node.outlet_progress:OutletProgress._acked_rows",
        old="for position in positions}",
        new="for position in positions if [other for other in positions]}",
        catcher=_test("tests/bounds/test_reactor.py -k twice_as_many", "twice_as_many_answers"),
    ),
    Mutant(
        name="a-lane-is-looked-for-among-all",
        at="msgservice.core.stuck_lanes:StuckLanes.take_back",
        old="if len(front) == 1 and head.first in front.by_first:\n        return [], None",
        new="back = [r for r in self._open if r.lane == head.lane"
        " and r.first > head.last and r.state == FLIGHT]\n"
        "    for one in back:\n        front.discard(one)\n"
        "    return back, None",
        catcher=_test("tests/bounds/test_reactor.py -k twice_as_many", "twice_as_many_answers"),
    ),
    Mutant(
        name="the-rest-of-a-head-stays-in-flight",
        at="msgservice.core.stuck_lanes:StuckLanes.take_back",
        old="former, stuck.head = stuck.head, head",
        new="former = stuck.head\n    if former is head and len(stuck.behind): return [], None\n"
        "    stuck.head = head",
        catcher=_by("outbox-again", "in flight is not what is unanswered", "lane order broken"),
    ),
    Mutant(
        name="stuck-lane-goes-on",
        at=f"{FLIGHT}.take_transfers",
        old="if stuck and steps_behind(run):",
        new="if run is None:",
        catcher=_by("outbox-again", "lane order broken"),
    ),
    Mutant(
        name="a-lane-goes-on-and-counts-as-behind",
        at="msgservice.core.stuck_lanes:StuckLanes._go_on",
        old="stuck.tally.move(self._behind, self._ready)",
        new="pass",
        catcher=_by("outbox", "counter: ready", "counter: behind"),
    ),
    Mutant(
        name="a-lane-goes-on-where-it-went-on-before",
        at="msgservice.core.stuck_lanes:StuckLanes._go_on",
        old="if stuck.entry != lowest.first:",
        new="if not stuck.entry:",
        catcher=_test("tests/unit/test_outbox.py -k its_place_among", "its_place_among"),
    ),
    Mutant(
        name="a-limit-forbids-what-would-relieve-it",
        at=f"{BACKLOG}.has_room",
        old="return last is not None and",
        new="return False and",
        catcher=_by("outbox-away", "stuck: nothing is wanted"),
    ),
    Mutant(
        name="a-page-of-the-connection-before-is-loaded",
        at="msgservice.node.supply:Supply._page_came",
        old="is_asked_for = self.state is State.READS",
        new="is_asked_for = self._flight is not None",
        catcher=_test("tests/unit/test_supply.py -k unloaded", "what_was_unloaded"),
    ),
    Mutant(
        name="what-was-fed-is-kept-without-a-connection",
        at="msgservice.node.supply:Supply.detach",
        old="self._drop_fed()",
        new="pass",
        catcher=_test("tests/unit/test_supply.py -k story", "no_story_of_a_receiver"),
    ),
    Mutant(
        name="who-said-goodbye-has-died",
        at="msgservice.node.peer:Peer.lost",
        old="by_itself = not (leaving or self.ended_by_us or contradicts)",
        new="by_itself = not (self.ended_by_us or contradicts)",
        catcher=_test("tests/unit/test_peer.py -k story", "no_story_of_a_peer"),
    ),
    Mutant(
        name="seen-other-content-has-died-of-it",
        at="msgservice.node.peer:Peer.lost",
        old="by_itself = not (leaving or self.ended_by_us or contradicts)",
        new="by_itself = not (leaving or self.ended_by_us)",
        catcher=_test("tests/unit/test_node_went_back.py -k error_11", "is_not_suspected"),
    ),
    Mutant(
        name="who-contradicts-tells-of-itself-alone",
        at="msgservice.node.receivers:Receivers.begin_anew",
        old="self._anew |= others",
        new="pass",
        catcher=_test(
            "tests/unit/test_node_went_back.py -k one_that_contradicts_shows",
            "test_6_one_that_contradicts_shows",
        ),
    ),
    Mutant(
        name="who-is-here-is-sent-all-again",
        at="msgservice.node.receivers:Receivers.compared",
        old="self._from_before.pop(row.number, None)",
        new="pass",
        catcher=_test(
            "tests/unit/test_node_went_back.py -k who_has_come_since",
            "test_6_who_has_come_since_the_start_stays",
        ),
    ),
    Mutant(
        name="a-queue-that-calls-itself",
        at="msgservice.core.runs:ReadyQueue.first",
        old="rising.popleft()",
        new="rising.popleft()\n            return self.first()",
        catcher=_test("tests/unit/test_outbox.py -k by_turns", "gone_by_turns"),
    ),
    Mutant(
        name="no-window-wants-nothing",
        at=f"{FLIGHT}.wants",
        old="if ready.runs and (",
        new="if (",
        catcher=_by("outbox", "stuck: no window, nothing is wanted"),
    ),
    Mutant(
        name="counted-twice-when-loaded-again",
        at=f"{BACKLOG}._place",
        old="self._stuck.put(run.lane, [run])",
        new="self._stuck.put(run.lane, [run]); self._stuck.count(run.lane, 1, run.count, run.size)",
        catcher=_by("outbox", "counter: behind"),
    ),
    Mutant(
        name="a-small-batch-kills-what-is-larger",
        at=f"{FLIGHT}._is_larger",
        old="if self._larger_is_dead:",
        new="if True:",
        catcher=_by("outbox", "dead without a reason"),
    ),
    Mutant(
        name="a-killer-is-never-alone",
        at=f"{FLIGHT_LIMIT}.lost",
        old="max(1, messages // LEFT)",
        new="max(2, messages // LEFT)",
        catcher=_test("tests/unit/test_outbox.py -k dies_of", "that_its_receiver_dies_of"),
    ),
    Mutant(
        name="what-a-worker-had-takes-others-along",
        at="msgservice.core.shared:SharedBacklog.land",
        old="sorted(flight.firsts)",
        new="sorted(self.carriers)",
        catcher=_swarm("kill_worker", "two workers have one message", seeds=20),
    ),
    Mutant(
        name="a-late-answer-counts-for-what-another-has",
        at="msgservice.core.shared:SharedFlight._carried_of",
        old="if carriers.get(run.first) is self",
        new="if True",
        catcher=_test("tests/unit/test_node_shared.py", "late_answer_to_what_another_has"),
    ),
    Mutant(
        name="a-shared-run-says-what-lies-between",
        at="msgservice.core.shared:SharedFlight._was_sent",
        old="if transfers[-1].after is not None:",
        new="if False:",
        catcher=_test("tests/unit/test_node_shared.py -k after_says", "after_says_no_more"),
    ),
    Mutant(
        name="workers-replace-each-other",
        at="msgservice.node.connections:_place_of",
        old='return hello.incarnation if hello is not None and outlet.row.options.shared else ""',
        new='return ""',
        catcher=_test(
            "tests/unit/test_node_shared.py -k newest_connection", "newest_connection_of"
        ),
    ),
    Mutant(
        name="who-has-least-room-gets-the-next",
        at="msgservice.node.shared_outlet:SharedOutlet._enter",
        old="(-worker.flight.free, worker.number",
        new="(worker.flight.free, worker.number",
        catcher=_test("tests/unit/test_node_shared.py", "worker_that_has_most_room"),
    ),
    Mutant(
        name="what-one-worker-does-not-take-no-other-gets",
        at="msgservice.node.shared_outlet:SharedOutlet._deal_larger",
        old="if flight.takes(run):",
        new="if False:",
        catcher=_test("tests/unit/test_node_shared.py", "too_large_for_one_worker"),
    ),
    Mutant(
        name="who-would-have-it-alone-shares",
        at="msgservice.node.greeting:check_shared",
        old="if row.options.shared is not shared:",
        new="if False:",
        catcher=_test("tests/unit/test_node_shared.py", "shared_against_unshared"),
    ),
    Mutant(
        name="a-shared-inbox-keeps-all",
        at="msgservice.core.marks:keep_newest",
        old="if count > most + slack:",
        new="if False:",
        catcher=_test("tests/unit/test_node_shared.py", "keeps_its_newest_ranges"),
    ),
    Mutant(
        name="who-was-lost-alone-is-one-of-many-again",
        at=f"{FLIGHT_LIMIT}.lost_one",
        old="self.suspects[alone.first] = Suspect(needs)",
        new="pass",
        catcher=_test("tests/unit/test_flight.py -k alone_until", "is_alone_until_it_is_answered"),
    ),
    Mutant(
        name="a-message-is-blamed-for-all-that-its-receiver-dies-of",
        at=f"{FLIGHT_LIMIT}.lost_one",
        old="if most is not None and not suspect.counts:",
        new="if False:",
        catcher=_test("tests/simulation/test_crashes.py -k nobody_else", "nobody_else_ever_is"),
    ),
    Mutant(
        name="what-a-receiver-died-of-without-a-message-says-nothing",
        at=f"{FLIGHT_LIMIT}.lost_one",
        old="self._quiet_since = now",
        new="pass",
        catcher=_test("tests/simulation/test_crashes.py -k nobody_else", "nobody_else_ever_is"),
    ),
    Mutant(
        name="a-message-that-kills-is-tried-as-often-as-any",
        at=f"{BACKLOG}.lose",
        old="is_last = 0 < self.max_losses <= losses",
        new="is_last = False",
        catcher=_test("tests/unit/test_node_poison.py -k 13_connections", "dead_after_13"),
    ),
    Mutant(
        name="attempts-are-of-the-node-alone",
        at="msgservice.node.outlet:Outlet._make_backlog",
        old="max_attempts=row.options.max_attempts or limits.max_attempts",
        new="max_attempts=limits.max_attempts",
        catcher=_test("tests/unit/test_node_poison.py", "and_nine_lanes_go_on"),
    ),
    Mutant(
        name="a-pause-is-an-attempt",
        at=f"{FLIGHT}.end",
        old="if not lost:",
        new="if False:",
        catcher=_test("tests/unit/test_node_attempts.py", "ends_on_purpose"),
    ),
    Mutant(
        name="replaced-processes-never-died",
        at="msgservice.node.connections:Connections.replace",
        old="lost=not same",
        new="lost=False",
        catcher=_test("tests/unit/test_node_attempts.py", "processes_die_of_unseen"),
    ),
    Mutant(
        name="a-reset-under-another-key",
        at="msgservice.core.datagram.handshake:Handshakes._receive_reset",
        old="or key_id != session.key_id",
        new="",
        catcher=_test(
            "tests/simulation/test_datagram_hostile.py -k sealed_with_the_key",
            "a_reset_is_believed_only_when_sealed_with_the_key",
        ),
    ),
    Mutant(
        name="a-session-made-again-under-its-name",
        at="msgservice.core.datagram.table:SessionTable._drop",
        old="if session.role == wire.RESPONDER:",
        new="if session.proven and session.role == wire.RESPONDER:",
        catcher=_test(
            "tests/simulation/test_datagram_hostile.py -k no_play_of_outsiders",
            "test_no_play_of_outsiders_and_insiders_breaks_what_must_be_so",
        ),
    ),
    Mutant(
        name="sums-of-pages-are-not-compared",
        at="msgservice.disk.pages:PageSums._compare",
        old="if found == known:",
        new="if found == known or known:",
        catcher=_test(
            "tests/unit/test_pages.py -k each_page_of_an_earlier_moment",
            "test_each_page_of_an_earlier_moment_is_damage",
        ),
    ),
    Mutant(
        name="sums-that-were-lost-are-taken-for-written",
        at="msgservice.disk.pages:PageSums._check_wal",
        old="self._known = known._replace(frames=0)",
        new="pass",
        catcher=_test("tests/unit/test_pages.py", "whose_write_was_lost"),
    ),
    Mutant(
        name="another-sqlite-of-the-process-is-not-kept-off",
        at="msgservice.disk.pages:PageSums.begin",
        old="if self._held is None:",
        new="if False:",
        catcher=_test("tests/unit/test_pages.py -k another_sqlite", "another_sqlite"),
    ),
    Mutant(
        name="a-log-that-was-brought-up-stores-by-itself",
        at="msgservice.log.store:Store.is_as_brought_up",
        old="return self._brought_up ==",
        new="return False and self._brought_up ==",
        catcher=_test("tests/unit/test_migrations.py -k taken_nothing_in", "taken_nothing_in"),
    ),
    Mutant(
        name="a-copy-counts-changes-of-its-tables-anew",
        at="msgservice.disk.database:backup",
        old='tables.to_bytes(4, "big")',
        new="bytes(4)",
        catcher=_test("tests/unit/test_migrations.py -k counts_changes", "counts_changes"),
    ),
    Mutant(
        name="sums-of-before-an-older-program-wrote-are-believed",
        at="msgservice.disk.pages:PageSums.begin",
        old="or self._is_forgotten",
        new="",
        catcher=_test("tests/unit/test_migrations.py -k put_back_and_used", "put_back_and_used"),
    ),
    Mutant(
        name="what-is-left-of-a-log-gets-into-a-copy",
        at="msgservice.log.copying:copy_log",
        old="_make_clear(folder)",
        new="pass",
        catcher=_test("tests/unit/test_log_copying.py", "what_is_left_of_a_log"),
    ),
    Mutant(
        name="one-deferred-answers-the-first-message-alone",
        at="msgservice.transport.udp.handler:Handling._take_result",
        old="followed(result) if",
        new="result if",
        catcher=_test("tests/unit/test_datagram_peer.py", "one_deferred_for_several"),
    ),
    Mutant(
        name="one-deferred-answers-the-first-request-alone",
        at="msgservice.faces.callbacks.dispatch:deferred",
        old="followed(result) if",
        new="result if",
        catcher=_test("tests/unit/test_callbacks_driver.py", "one_deferred_for_several"),
    ),
    Mutant(
        name="what-is-still-handled-is-idle",
        at="msgservice.core.datagram.receiver:ReceivingHalf.owes",
        old="> self.handled_messages",
        new="< self.handled_messages",
        catcher=_test("tests/unit/test_datagram_peer.py", "not_forgotten_for_want_of_room"),
    ),
    Mutant(
        name="a-timer-on-the-wall-clock",
        at="msgservice.clock:MonotonicTimers._tick",
        old="if has_jumped or is_late or (",
        new="if False and (",
        catcher=_test("tests/unit/test_clock.py", "test_17_a_clock_that_goes_back_an_hour"),
    ),
    Mutant(
        name="a-jump-there-and-back-is-none",
        at="msgservice.clock:MonotonicTimers._tick",
        old="if has_jumped or is_late or (",
        new="if has_jumped or (",
        catcher=_test("tests/unit/test_clock.py", "test_17_a_clock_set_forward_and_back"),
    ),
    Mutant(
        name="a-dial-on-the-wall-clock",
        at="msgservice.clock:TimedReactor.__init__",
        old="MethodType(made.__func__, self)",
        new="made",
        catcher=_test("tests/unit/test_clock.py", "test_17_a_dial_without_an_answer"),
    ),
    Mutant(
        name="insecure-opens-administration",
        at="msgservice.node.gate:Gate._believed",
        old="if credentials.is_local else _anything_but_administration",
        new="",
        catcher=_test("tests/unit/test_node_doors.py", "administration"),
    ),
    Mutant(
        name="files-for-everybody",
        at="msgservice.disk.database:make_private",
        old="os.fchmod(descriptor, 0o600)",
        new="os.fchmod(descriptor, 0o644)",
        catcher=_test("tests/unit/test_log_folder.py", "owners_alone"),
    ),
    Mutant(
        name="a-copy-of-before-is-overwritten",
        at="msgservice.disk.migrations:_named",
        old="if not found.exists()",
        new="if True",
        catcher=_test("tests/unit/test_migrations.py", "is_not_overwritten"),
    ),
    Mutant(
        name="each-step-is-committed-alone",
        at="msgservice.disk.migrations:migrate",
        old="db.execute(step)",
        new="db.execute(step + '; commit; begin')",
        catcher=_test("tests/unit/test_migrations.py", "cut_off_anywhere"),
    ),
    Mutant(
        name="a-client-that-closes-leaves-what-was-left-over",
        at="msgservice.client.shutdown:Shutdown._answers_due",
        old="or (self._disk is not None and bool(self._connector.running))",
        new="",
        catcher=_test("tests/unit/test_client_disk.py", "close_waits"),
    ),
    Mutant(
        name="limits-that-contradict-each-other-pass",
        at="msgservice.limits:contradictions",
        old="if value < bound or (value == bound and pairs is ORDERED):",
        new="if value <= bound or pairs is PARTS:",
        catcher=_test("tests/unit/test_config.py", "contradict"),
    ),
    Mutant(
        name="a-data-folder-is-not-looked-at",
        at="msgservice.disk.filesystem:check_folder",
        old="if not is_folder:",
        new="if False:",
        catcher=_test("tests/unit/test_config.py", "data_folder"),
    ),
    Mutant(
        name="each-hello-that-does-not-open-is-told",
        at="msgservice.core.datagram.unopened:UnopenedHellos.add",
        old="if address[0] in self._hosts or len(self._hosts) >= TOLD_HOSTS:",
        new="if False:",
        catcher=_test("tests/unit/test_datagram_unopened.py", "told"),
    ),
    # --- sessions
    Mutant(
        name="a-remote-that-is-full-holds-up-all-others",
        at="msgservice.faces.sessions.durable:DurableRemotes._send",
        old="_subject_of(name.removeprefix(PREFIX))",
        new='"remotes"',
        catcher=_test(
            "tests/integration/test_sessions_durable.py::"
            "test_a_remote_that_is_away_and_full_holds_up_no_other",
            "full_holds_up_no_other",
        ),
    ),
    Mutant(
        name="a-receiver-that-was-sent-away-is-not-attached-again",
        at="msgservice.faces.gateway:Gateway.attach_again",
        old="for way in over:",
        new="for way in ():",
        catcher=_test(
            "tests/integration/test_sessions_durable.py::"
            "test_a_receiver_that_was_removed_is_made_again_when_its_remote_joins_again",
            "made_again",
        ),
    ),
    Mutant(
        name="what-is-stored-is-handed-to-who-is-not-there",
        at="msgservice.faces.sessions.durable:DurableRemotes._when_joined",
        old="member is None or member.is_joined or self._is_stopped",
        new="True",
        catcher=_test(
            "tests/integration/test_sessions_durable.py::"
            "test_what_a_process_takes_is_asked_of_the_one_that_is_there",
            "asked_of_the_one_that_is_there",
        ),
    ),
    Mutant(
        name="what-one-process-took-binds-the-next",
        at="msgservice.faces.sessions.hop:Account.begin",
        old="self.outgoing.takes()",
        new="pass",
        catcher=_test("tests/unit/test_sessions_waits.py", "took_binds_nobody"),
    ),
    Mutant(
        name="a-large-message-without-acks-stands-before-all-others",
        at="msgservice.faces.sessions.hop:Hop._ended_with",
        old="self._fruitless == FRUITLESS_MAX",
        new="False",
        catcher=_test("tests/unit/test_sessions_ends.py", "does_not_stand_before_others"),
    ),
    Mutant(
        name="a-large-message-is-given-up-for-a-proxy-that-closes",
        at="msgservice.faces.sessions.hop:Hop.pump",
        old="self._pause is not None or outgoing.unanswered",
        new="outgoing.unanswered",
        catcher=_test("tests/unit/test_sessions_ends.py", "cost_no_large_message"),
    ),
    Mutant(
        name="a-stop-waits-for-the-budget",
        at="msgservice.faces.sessions.listener:Inbound.close",
        old="if self._decoding.waits_for_budget:",
        new="if False:",
        catcher=_test("tests/unit/test_sessions_waits.py", "makes_a_stop_no_longer"),
    ),
    Mutant(
        name="a-central-that-beats-seldom-is-cut-off",
        at="msgservice.faces.sessions.listener:Inbound.connectionMade",
        old="if not self._listener.may_be_silent:",
        new="if True:",
        catcher=_test("tests/unit/test_sessions_waits.py", "beats_seldom"),
    ),
    Mutant(
        name="a-pickle-sets-aside-a-memo",
        at="msgservice.faces.sessions.content.restricted:_memo",
        old="if index > at // 3 + 1:",
        new="if False:",
        catcher=_test("tests/unit/test_sessions_pickles.py", "memo"),
    ),
    Mutant(
        name="an-extension-of-pickles-is-taken",
        at="msgservice.faces.sessions.content.restricted:_skip",
        old="_refuse(_REASONS.get(opcode,",
        new="return at + (1, 2, 4)[opcode - 0x82] if 0x82 <= opcode <= 0x84 else _refuse("
        "_REASONS.get(opcode,",
        catcher=_test(
            "tests/unit/test_sessions_pickles.py::"
            "test_an_extension_is_refused_though_it_was_looked_up_before",
            "extension",
        ),
    ),
    Mutant(
        name="what-grows-later-is-not-counted",
        at="msgservice.faces.sessions.content.restricted:_grow",
        old="if container[_IS_SEALED]:",
        new="if container is _PLAIN:",
        catcher=_test("tests/unit/test_sessions_pickles.py", "something_else_already"),
    ),
    Mutant(
        name="a-text-ends-beyond-its-piece",
        at="msgservice.faces.sessions.content.shapes:_learn",
        old="if at > end:",
        new="if False:",
        catcher=_test("tests/unit/test_sessions_shapes.py", "walk_too"),
    ),
    Mutant(
        name="a-mark-that-is-dropped-stays",
        at="msgservice.faces.sessions.content.restricted:_follow",
        old="if marks and marks[-1] == len(stack):",
        new="if False:",
        catcher=_test(
            "tests/unit/test_sessions_pickles.py::"
            "test_deep_tuples_are_told_through_the_memo_and_past_marks_that_are_dropped",
            "past_marks",
        ),
    ),
    Mutant(
        name="a-numbered-message-is-taken-for-control",
        at="msgservice.faces.sessions.content.records:RecordsCodec.decode",
        old="if session is None and number is None:",
        new="if session is None and number is None or self.control_of(content):",
        catcher=_test("tests/contract/test_session_codec.py", "reads_as_a_control_message"),
    ),
    Mutant(
        name="a-text-that-was-logged-is-control",
        at="msgservice.faces.sessions.content.records:RecordsCodec._item",
        old="if type(content) is not str:",
        new="if True:",
        catcher=_test("tests/integration/test_sessions.py", "is_a_message_at_a_central"),
    ),
    Mutant(
        name="more-than-the-window-is-sent",
        at="msgservice.faces.sessions.outgoing:Outgoing.take",
        old="if under_way and not at_end and (",
        new="if False and (",
        catcher=_test("tests/unit/test_sessions_waits.py", "gets_it"),
    ),
    Mutant(
        name="what-a-remote-says-waits-for-what-others-have",
        at="msgservice.faces.sessions.listener:Inbound.prove",
        old="self._decoding.free_bytes = self._bytes_max",
        new="pass",
        catcher=_test("tests/unit/test_sessions_waits.py", "hear_of_it"),
    ),
    Mutant(
        name="who-has-left-is-heard-on",
        at="msgservice.faces.sessions.central:Central.member_left",
        old="if not member.is_ending:",
        new="if False:",
        catcher=_test("tests/unit/test_sessions_waits.py", "says_hello_again"),
    ),
    Mutant(
        name="hellos-of-a-connection-are-dialled-at-once",
        at="msgservice.faces.sessions.central:Central._hello",
        old="pause = HELLO_SECONDS",
        new="pause = 0.0",
        catcher=_test("tests/unit/test_sessions_ends.py", "one_after_the_other"),
    ),
    Mutant(
        name="who-was-never-there-has-left",
        at="msgservice.faces.sessions.central:Central._install",
        old="member.replace()",
        new="pass",
        catcher=_test("tests/unit/test_sessions_world.py", "is_no_remote_that_left"),
    ),
    Mutant(
        name="what-is-sent-is-made-to-see-how-deep-it-is",
        at="msgservice.codecs:_Structured.encode",
        old="self._look(body)",
        new="[self._decode(body)][0]",
        catcher=_test("tests/unit/test_sessions_content.py", "made_where_it_is_sent"),
    ),
    Mutant(
        name="a-record-is-kept-untried",
        at="msgservice.faces.sessions.content.shapes:Shapes.keep",
        old="""{**value, "msg": ""}) if is_kept else None""",
        new="""{**value, "msg": ""})""",
        catcher=_test("tests/unit/test_sessions_shapes.py", "as_it_would_be_unread"),
    ),
    Mutant(
        name="a-message-too-large-has-no-number",
        at="msgservice.faces.sessions.listener:Inbound._too_large",
        old="if numbering else None",
        new="if False else None",
        catcher=_test("tests/unit/test_sessions_listener.py", "by_its_number"),
    ),
    Mutant(
        name="one-host-has-all-places",
        at="msgservice.faces.sessions.central:Central._has_no_place",
        old="if per_host >= self._limits.remotes_per_host:",
        new="if False:",
        catcher=_test("tests/unit/test_sessions_ends.py", "remotes_per_host"),
    ),
    Mutant(
        name="a-time-that-is-none",
        at="msgservice.faces.sessions.envelope:_heartbeat",
        old="if not -NUMBER_MAX <= time <= NUMBER_MAX:",
        new="if False:",
        catcher=_test("tests/unit/test_sessions_envelope.py", "time"),
    ),
    # --- who is there, and what may they do
    Mutant(
        name="a-pattern-covers-what-is-shorter",
        at="msgservice.identity.rules:covers",
        old="len(narrow) <= len(wide)",
        new="len(narrow) < len(wide)",
        catcher=_test("tests/unit/test_identity_rules.py", "covers_another"),
    ),
    Mutant(
        name="a-pattern-of-one-token-covers-the-rest",
        at="msgservice.identity.rules:covers",
        old=" or narrow[-1] == REST",
        new="",
        catcher=_test("tests/unit/test_identity_rules.py", "covers_another"),
    ),
    Mutant(
        name="who-may-request-everything-is-an-administrator",
        at="msgservice.identity.rules:Patterns.deciding",
        old="if is_reserved(name):",
        new="if False:",
        catcher=_test("tests/unit/test_identity_rules.py", "no_administrator"),
    ),
    Mutant(
        name="a-receivers-name-is-asked-for-as-a-pattern",
        at="msgservice.identity.rules:Rules.__init__",
        old='"to": Patterns(to)',
        new='"to": Patterns(to, covering=True)',
        catcher=_test("tests/unit/test_identity_rules.py", "looks_like_a_pattern"),
    ),
    Mutant(
        name="answers-of-rules-pile-up",
        at="msgservice.identity.rules:Patterns.allow",
        old="if len(self._remembered) >= REMEMBERED_MAX:",
        new="if False:",
        catcher=_test("tests/unit/test_identity_rules.py", "in_a_bound"),
    ),
    Mutant(
        name="a-client-says-hello-before-its-login-is-over",
        at="msgservice.core.session:Session.hello",
        old="if self._logs_in and not self._is_authenticated:",
        new="if False:",
        catcher=_test("tests/unit/test_session.py", "a_login_takes_turns"),
    ),
    Mutant(
        name="a-client-whose-login-may-not-begin-goes-on-without",
        at="msgservice.core.session:Session.hello",
        old="if self.state is State.CLOSED:",
        new="if False:",
        catcher=_test("tests/unit/test_login.py", "says_nothing_but_why"),
    ),
    Mutant(
        name="a-login-has-no-turns",
        at="msgservice.core.session:Session._take_auth",
        old="if self._owes_auth:",
        new="if False:",
        catcher=_test("tests/unit/test_session.py", "an_auth_out_of_turn"),
    ),
    Mutant(
        name="a-peer-may-log-in-twice",
        at="msgservice.core.session:Session._take_auth",
        old="if self._is_authenticated:",
        new="if False:",
        catcher=_test("tests/unit/test_session.py", "a_second_login"),
    ),
    Mutant(
        name="bytes-of-a-login-are-not-counted",
        at="msgservice.connection:Connection._take",
        old="if state is not _OPEN and state in _BEFORE_OPEN:",
        new="if state in _BEFORE_OPEN and not self.is_logging_in:",
        catcher=_test("tests/unit/test_login.py", "cut_off_by_bytes"),
    ),
    Mutant(
        name="a-login-ends-on-a-connection-that-has-gone",
        at="msgservice.node.login:PeerLogin._say",
        old="if self._is_over:",
        new="if False:",
        catcher=_test("tests/unit/test_login.py", "closing_while_a_login_runs"),
    ),
    Mutant(
        name="a-client-computes-what-it-is-asked",
        at="msgservice.identity.client_exchange:ClientExchange._server_first",
        old="if not ITERATIONS_MIN <= iterations <= ITERATIONS_MAX:",
        new="if False:",
        catcher=_test("tests/unit/test_identity_logins.py", "iterations"),
    ),
    Mutant(
        name="a-client-binds-no-login-to-tls",
        at="msgservice.identity.client_exchange:ClientExchange.begin",
        old='if self._credentials.how == "tls":',
        new="if False:",
        catcher=_test("tests/unit/test_identity_logins.py", "lets_in_and_the_server"),
    ),
    Mutant(
        name="tls-lets-a-write-overtake-what-waits",
        at="msgservice.transport.tcp.records:takes",
        old='not getattr(transport, "_appSendBuffer", True)',
        new="True",
        catcher=_test("tests/unit/test_tcp_records.py", "goes_before_what_is_sent_behind_it"),
    ),
    Mutant(
        name="tls-forgets-why-it-broke",
        at="msgservice.transport.tcp.records:decrypted",
        old="error = Failure()",
        new="error = None",
        catcher=_test("tests/unit/test_tcp_records.py", "ends_the_connection_behind"),
    ),
    Mutant(
        name="keys-outlive-their-password",
        at="msgservice.identity.client_exchange:RememberedKeys.known",
        old="(kept.password, kept.salt, kept.iterations) != asked",
        new="(kept.salt, kept.iterations) != asked[1:]",
        catcher=_test("tests/unit/test_identity_logins.py", "that_are_asked_for"),
    ),
    Mutant(
        name="a-client-believes-any-server",
        at="msgservice.identity.client_exchange:ClientExchange._server_final",
        old="not hmac.compare_digest(proved,",
        new="False and not hmac.compare_digest(proved,",
        catcher=_test("tests/unit/test_identity_logins.py", "is_not_believed"),
    ),
    Mutant(
        name="a-client-says-its-token-to-all",
        at="msgservice.identity.client_exchange:ClientExchange.begin",
        old="self._login.token or not self._insecure",
        new="not self._insecure",
        catcher=_test("tests/unit/test_identity_logins.py", "a_token_may_not"),
    ),
    Mutant(
        name="a-login-over-tls-need-not-be-bound",
        at="msgservice.identity.server_exchange:ServerExchange._scram_first",
        old='if name == SCRAM and (binding is not None or self._credentials.how == "tls"):',
        new="if False:",
        catcher=_test("tests/unit/test_identity_logins.py", "not_bound_to_it"),
    ),
    Mutant(
        name="a-user-that-there-is-not-is-let-in",
        at="msgservice.identity.users:Users.by_password",
        old="user not in self._passwords",
        new="user not in self._all",
        catcher=_test("tests/unit/test_identity_logins.py", "an_unknown_user_stays_out"),
    ),
    Mutant(
        name="a-user-that-there-is-not-is-told-so",
        at="msgservice.identity.users:Users.record",
        old="self._passwords.get(user, made_up)",
        new="self._passwords[user]",
        catcher=_test("tests/unit/test_identity_logins.py", "told_the_same"),
    ),
    Mutant(
        name="a-salt-that-is-made-up-is-another-each-time",
        at="msgservice.identity.users:Users.record",
        old='b"".join(salts)',
        new='__import__("os").urandom(64)',
        catcher=_test("tests/unit/test_identity_users.py", "stays_the_same"),
    ),
    Mutant(
        name="guesses-at-once-are-not-counted",
        at="msgservice.identity.server_exchange:ServerExchange._scram_final",
        old="if not self._may_try():",
        new="if False:",
        catcher=_test("tests/unit/test_identity_logins.py", "begun_at_once"),
    ),
    Mutant(
        name="strangers-keep-a-user-out",
        at="msgservice.identity.throttle:_place",
        old="return address",
        new='return ""',
        catcher=_test("tests/unit/test_identity_throttle.py", "strangers_keep_no_user_out"),
    ),
    Mutant(
        name="strangers-behind-a-proxy-keep-a-user-out",
        at="msgservice.identity.throttle:Throttle.allows",
        old=" or (place, user) in self._known",
        new="",
        catcher=_test("tests/unit/test_identity_throttle.py", "that_strangers_use_up"),
    ),
    Mutant(
        name="an-address-of-ipv6-is-one-of-many",
        at="msgservice.identity.throttle:_place",
        old="return str(ip_network((parsed, _NETWORK_BITS), strict=False))",
        new="return address",
        catcher=_test("tests/unit/test_identity_throttle.py", "cannot_choose"),
    ),
    Mutant(
        name="a-token-is-taken-where-others-read",
        at="msgservice.identity.server_exchange:ServerExchange._token",
        old="if not self._credentials.is_private:",
        new="if False:",
        catcher=_test("tests/unit/test_identity_logins.py", "others_can_read_is_not_taken"),
    ),
    Mutant(
        name="a-token-that-expired-lets-in",
        at="msgservice.identity.users:Users.by_token",
        old=" or not token.is_valid(wall)",
        new="",
        catcher=_test("tests/unit/test_identity_logins.py", "expired_lets_nobody_in"),
    ),
    Mutant(
        name="a-token-that-is-revoked-keeps-its-sessions",
        at="msgservice.identity.users:Users.holds",
        old="return self._generation(user, principal.how) == principal.generation",
        new="return True",
        catcher=_test("tests/unit/test_identity_users.py", "holds_until"),
    ),
    Mutant(
        name="a-certificate-of-two-users-is-one-of-them",
        at="msgservice.identity.users:Users.principal",
        old="len(found) == 1",
        new="found",
        catcher=_test("tests/unit/test_identity_users.py", "names_two_users"),
    ),
    Mutant(
        name="a-name-is-prepared-however-long-that-takes",
        at="msgservice.identity.server_exchange:_is_fit",
        old='ucd_3_2_0.is_normalized("NFKC", name)',
        new="True",
        catcher=_test(
            "tests/unit/test_identity_logins.py::test_a_name_that_is_long_to_prepare_is_not_prepared",
            "long_to_prepare",
        ),
    ),
    Mutant(
        name="a-users-file-that-its-group-reads",
        at="msgservice.identity.private_files:check_private",
        old="& 0o077",
        new="& 0o007",
        catcher=_test("tests/unit/test_identity_files.py", "others_can_use"),
    ),
    # --- doors
    Mutant(
        name="a-key-at-the-address-of-another-takes-its-place",
        at="msgservice.core.datagram.endpoint:Endpoint.receive_datagrams",
        old="(*address, *key_id)",
        new="address",
        catcher=_test("tests/unit/test_udp_keys.py", "from_the_address_of_another"),
    ),
    Mutant(
        name="a-key-of-another-user-keeps-its-sessions",
        at="msgservice.transport.udp.keyfile:SharedKeys.ended_by",
        old=" or new.users.get(number) != self.users.get(number)",
        new="",
        catcher=_test("tests/unit/test_udp_keys.py", "another user"),
    ),
    Mutant(
        name="a-key-that-is-gone-keeps-its-sessions",
        at="msgservice.core.datagram.endpoint:Endpoint.change_keys",
        old="session.key_id in ended",
        new="False",
        catcher=_test("tests/unit/test_udp_keys.py", "taken_out_ends"),
    ),
    Mutant(
        name="a-certificate-for-any-name-is-taken",
        at="msgservice.transport.tcp.refusals:watch",
        old="not _is_for(certificate, host)",
        new="False",
        catcher=_test("tests/integration/test_tls.py", "of_another_name"),
    ),
    Mutant(
        name="a-certificate-that-is-not-taken-is-taken",
        at="msgservice.transport.tcp.refusals:watch",
        old="return reason is None",
        new="return True",
        catcher=_test("tests/integration/test_tls.py", "whose_time_is_over"),
    ),
    Mutant(
        name="a-profile-of-tls-is-that-of-clients-at-a-listener-too",
        at="msgservice.transport.tcp.profiles:TlsProfiles.files",
        old="profile.client_roots if listening else profile.trust_roots",
        new="profile.trust_roots",
        catcher=_test("tests/unit/test_tls_profiles.py", "client_roots_alone"),
    ),
    Mutant(
        name="a-user-gives-an-address-with-files",
        at="msgservice.node.admin:Admin._check_given",
        old="who.is_bound",
        new="False",
        catcher=_test("tests/unit/test_node_users.py", "names_nothing_of_the_nodes"),
    ),
    Mutant(
        name="a-users-file-protects-nobody",
        at="msgservice.config.users:check_users_file",
        old="if not users:",
        new="if False:",
        catcher=_test("tests/unit/test_config_users.py", "nobody_would_be_asked"),
    ),
    Mutant(
        name="a-wrong-password-is-shown",
        at="msgservice.config.users:_password",
        old="text = reader.value(path, Any, None)",
        new="text = reader.value(path, str, None)",
        catcher=_test("tests/unit/test_config_users.py", "cannot_be_is_told"),
    ),
    Mutant(
        name="a-configuration-that-is-printed-has-its-secrets",
        at="msgservice.cli.check_config:_object",
        old='told | {"users": [_user_object(user) for user in config.users]}',
        new="told",
        catcher=_test("tests/unit/test_cli_users.py", "no_secret"),
    ),
    Mutant(
        name="a-name-that-is-not-the-users",
        at="msgservice.node.gate:Gate.admit",
        old="if not found.may_be_called(name):",
        new="if False:",
        catcher=_test("tests/unit/test_gate.py", "names_that_are_its"),
    ),
    Mutant(
        name="a-receiver-of-nobody-is-given-to-who-comes-first",
        at="msgservice.node.gate:Pass.check_name",
        old="owner is not None and owner != self.principal.user",
        new="owner and owner != self.principal.user",
        catcher=_test("tests/unit/test_node_users.py", "given_to_none"),
    ),
    Mutant(
        name="a-receiver-of-another-is-given-to-who-comes",
        at="msgservice.node.receivers:Receivers.attaching",
        old="self.check_may_be(name, who)",
        new="pass",
        catcher=_test("tests/unit/test_node_users.py", "nobody_elses"),
    ),
    Mutant(
        name="patterns-of-a-receiver-are-not-judged",
        at="msgservice.node.receivers:Receivers.attaching",
        old="who.check_receives(patterns or (() if row is None else row.patterns))",
        new="pass",
        catcher=_test("tests/unit/test_node_users.py", "may_receive"),
    ),
    Mutant(
        name="patterns-that-a-receiver-has-are-not-judged",
        at="msgservice.node.receivers:Receivers.attaching",
        old="patterns or (() if row is None else row.patterns)",
        new="patterns",
        catcher=_test("tests/unit/test_node_users.py", "by_those_that_it_has"),
    ),
    Mutant(
        name="a-removed-receiver-is-told-of-to-anybody",
        at="msgservice.node.greeting:Greeter._over",
        old="self._receivers.check_may_be(hello.name, allowed)",
        new="pass",
        catcher=_test("tests/unit/test_node_users.py", "only_to_whom_it_was"),
    ),
    Mutant(
        name="loopback-is-believed-though-there-are-users",
        at="msgservice.node.gate:Gate._pass_of",
        old="if principal is None and not door.asks:",
        new="if principal is None and credentials.is_local:",
        catcher=_test("tests/unit/test_gate.py", "every_listener_asks"),
    ),
    Mutant(
        name="a-login-holds-for-ever",
        at="msgservice.node.gate:Gate.holds",
        old="return self._holding[principal]",
        new="return True",
        catcher=_test("tests/unit/test_node_users.py", "a_reload_ends"),
    ),
    Mutant(
        name="an-error-from-outside-is-written-as-it-is",
        at="msgservice.log_lines:escape",
        old="isinstance(value, BaseException)",
        new="False",
        catcher=_test("tests/unit/test_log_lines.py", "one_line_without"),
    ),
    Mutant(
        name="a-part-acts-for-a-user-that-nobody-configured",
        at="msgservice.node.node:Node.attach",
        old="if principal:",
        new="if False:",
        catcher=_test("tests/unit/test_node_users.py", "is_not_attached"),
    ),
    Mutant(
        name="who-was-sent-away-is-told-more",
        at="msgservice.connection:Connection.send_now",
        old="and self.channel is not None and self.session.failed is None",
        new="and self.channel is not None",
        catcher=_test("tests/unit/test_connection_reading.py", "behind_the_error"),
    ),
    Mutant(
        name="all-who-come-together-are-looked-at-in-one-turn",
        at="msgservice.connection:Connection.frames_received",
        old="elif self._arrivals is not None and self.session.state in _BEFORE_OPEN:",
        new="elif False:",
        catcher=_test("tests/unit/test_node_greeting.py -k slice", "slice_of_each_turn"),
    ),
    Mutant(
        name="all-whose-hello-was-stored-are-answered-in-one-turn",
        at="msgservice.node.greeting:Greeter.greeted",
        old="arrivals.run(lambda: self._answer(visitor, connection, guest, taken))",
        new="self._answer(visitor, connection, guest, taken)",
        catcher=_test("tests/unit/test_node_greeting.py -k slice", "the_log_gives_together"),
    ),
    Mutant(
        name="a-login-that-has-ended-before-hello-is-let-in",
        at="msgservice.node.gate:Gate._pass_of",
        old="if not users.holds(principal, self._time.wall()):",
        new="if False:",
        catcher=_test("tests/unit/test_gate.py", "when_hello_comes"),
    ),
    Mutant(
        name="a-sender-is-told-of-others-messages",
        at="msgservice.node.admin:Admin._status",
        old="if not (who.sees_all or who.has_sent(found.sender)):",
        new="if False:",
        catcher=_test("tests/unit/test_node_users.py", "told_to_its_sender"),
    ),
    Mutant(
        name="a-sender-is-told-tracebacks",
        at="msgservice.node.peer:Peer.opened",
        old="whole_reasons=guest.allowed.sees_all",
        new="whole_reasons=True",
        catcher=_test("tests/unit/test_node_users.py", "first_line"),
    ),
    Mutant(
        name="an-owner-goes-with-its-receiver",
        at="msgservice.node.directory:Directory._note_owner",
        old="if row.removed and row.owner and row.name not in self._by_name:",
        new="if False:",
        catcher=_test("tests/unit/test_node_users.py", "outlives"),
    ),
    Mutant(
        name="what-was-let-in-without-users-stays",
        at="msgservice.node.gate:Gate.holds",
        old="return given.principal.how == PROCESS or users is None",
        new="return True",
        catcher=_test("tests/unit/test_gate.py", "first_user"),
    ),
    Mutant(
        name="logins-are-taken-where-others-read-along",
        at="msgservice.node.gate:Gate.login",
        old="if not credentials.is_private and not self.insecure:",
        new="if False:",
        catcher=_test("tests/unit/test_gate.py", "others_read_along"),
    ),
    # --- replays, in the node
    Mutant(
        name="the-last-page-of-a-start-holds-nobody",
        at="msgservice.node.replayer:Replayer._came",
        old="if running.holds and is_all:",
        new="if is_all:",
        catcher=_test(REPLAYS, "test_47_replays_are_in_order"),
    ),
    Mutant(
        name="a-receiver-that-starts-is-in-audiences",
        at="msgservice.node.directory:Directory.audience",
        old=" - self._starting",
        new="",
        catcher=_test(REPLAYS, "test_47_replays_are_in_order"),
    ),
    Mutant(
        name="a-rewind-of-what-its-user-may-not-receive",
        at="msgservice.log.replaying:_Acknowledged.of",
        old="row.flags & NAMED or allowed.has(row.subject)",
        new="row.flags & NAMED or row.subject",
        catcher=_test("tests/unit/test_node_replay.py", "test_32_a_rewind_sends_nothing"),
    ),
    Mutant(
        name="a-page-from-before-a-right-was-taken-away",
        at="msgservice.node.replayer:Replayer._came",
        old="if patterns != self._patterns(row, replay):",
        new="if False:",
        catcher=_test("tests/unit/test_node_replay.py", "test_32_history_that_was_read"),
    ),
    Mutant(
        name="a-start-is-forgotten-by-a-restart",
        at="msgservice.node.replayer:Replayer.load",
        old="self._directory.set_starting(row, True)",
        new="pass",
        catcher=_test(REPLAYS, "test_47_replays_are_in_order"),
    ),
    Mutant(
        name="what-a-start-brought-counts-as-left-out",
        at="msgservice.node.receivers:Receivers.has_had",
        old="if row.left_first and row.left_first < position:",
        new="if False:",
        catcher=_test(REPLAYS, "test_47_replays_are_in_order"),
    ),
    Mutant(
        name="what-is-called-off-is-left-out-no-more",
        at="msgservice.node.receivers:Receivers.leave_out",
        old="row.left_first = first",
        new="pass",
        catcher=_test(
            "tests/unit/test_node_replay.py::"
            "test_18_the_rest_stays_left_out_where_that_is_called_off",
            "test_18_the_rest",
        ),
    ),
    # --- replays, in the log
    Mutant(
        name="a-page-of-a-replay-holds-at-any-time",
        at="msgservice.log.staging:take_pages",
        old="known is None or known.is_over or known.next != page.after",
        new="known is None",
        catcher=_test(
            "tests/contract/test_log_replay.py::"
            "test_47_a_page_of_another_moment_is_void_and_changes_nothing",
            "test_47_a_page_of_another_moment",
        ),
    ),
    Mutant(
        name="a-page-of-a-replay-moves-no-row",
        at="msgservice.log.staging:take_pages",
        old="        _stage_replay(staged, page.replay, operations)\n",
        new="",
        catcher=_test(
            "tests/contract/test_log_replay.py::"
            "test_47_a_page_of_another_moment_is_void_and_changes_nothing",
            "test_47_a_page_of_another_moment",
        ),
    ),
    Mutant(
        name="retention-takes-what-is-to-be-copied",
        at="msgservice.log.places:settled_to",
        old="settled = min(settled, replay.next - 1)",
        new="pass",
        catcher=_test(
            "tests/contract/test_log_replay.py::test_47_what_a_replay_is_to_copy_stays",
            "test_47_what_a_replay_is_to_copy_stays",
        ),
    ),
    Mutant(
        name="a-copy-is-copied-again",
        at="msgservice.log.replaying:copies",
        old="copied = FLAG_REPLAY",
        new="copied = 0",
        catcher=_test(
            "tests/contract/test_log_replay.py::test_47_no_copy_is_copied_again",
            "test_47_no_copy_is_copied_again",
        ),
    ),
    Mutant(
        name="a-newer-retained-message-goes-with-the-expired-one",
        at="msgservice.log.removal:_clear_retained",
        old="if entry.expired:",
        new="if False:",
        catcher=_test(
            "tests/contract/test_log_retained.py::"
            "test_48_of_what_has_expired_the_log_lets_go_and_of_nothing_newer",
            "test_48_of_what_has_expired",
        ),
    ),
    Mutant(
        name="a-newer-retained-message-expires-with-the-one-before",
        at="msgservice.node.retained:RetainedIndex._keep",
        old="self._expires.pop(subject, None)\n",
        new="if not size:\n        self._expires.pop(subject, None)\n",
        catcher=_test(
            "tests/unit/test_node_retained.py::"
            "test_48_a_newer_one_stays_when_the_one_before_expires",
            "test_48_a_newer_one_stays",
        ),
    ),
    Mutant(
        name="retained-and-history-too",
        at="msgservice.log.staging:join_copies",
        old="one.position not in kept",
        new="True",
        catcher=_test(
            "tests/contract/test_log_retained.py::"
            "test_48_who_starts_and_gets_more_subjects_has_the_rest_as_history",
            "test_48_who_starts_and_gets_more_subjects",
        ),
    ),
    Mutant(
        name="history-that-has-left-the-log-is-not-retained",
        at="msgservice.log.staging:join_copies",
        old="one.position not in kept",
        new="one.position < below",
        catcher=_test(
            "tests/contract/test_log_retained.py::"
            "test_48_who_starts_with_history_has_what_of_it_has_left_the_log",
            "test_48_who_starts_with_history",
        ),
    ),
    Mutant(
        name="history-that-found-no-room-is-retained-as-well",
        at="msgservice.log.staging:_history_from",
        old="min(join.below, replay.next)",
        new="join.below",
        catcher=_test(
            "tests/contract/test_log_retained.py::"
            "test_48_who_starts_and_gets_more_subjects_has_the_rest_as_history",
            "test_48_who_starts_and_gets_more_subjects",
        ),
    ),
    Mutant(
        name="histories-of-all-in-one-turn",
        at="msgservice.node.tracker:Tracker._history",
        old="await self._slices.run(partial(watch.told.tell, news))",
        new="watch.told.tell(news)",
        catcher=_test(
            "tests/unit/test_tracker_turns.py::"
            "test_histories_of_very_many_producers_take_no_long_turn_and_are_whole",
            "test_histories_of_very_many_producers",
        ),
    ),
    Mutant(
        name="who-does-not-read-holds-up-others",
        at="msgservice.node.tracker:Tracker._history",
        old="await watch.told.room()\n        await self._pages.acquire()\n",
        new="await self._pages.acquire()\n        await watch.told.room()\n",
        catcher=_test(
            "tests/unit/test_tracker_turns.py::test_producers_that_do_not_read_hold_up_no_others",
            "test_producers_that_do_not_read",
        ),
    ),
    Mutant(
        name="history-has-copies-that-others-got",
        at="msgservice.log.replaying:copies",
        old="copied |= FLAG_RETAINED",
        new="pass",
        catcher=_test(
            "tests/contract/test_log_retained.py::"
            "test_48_history_has_the_original_and_no_copy_that_others_got",
            "test_48_history_has_the_original",
        ),
    ),
    Mutant(
        name="due-before-a-membership-without-room",
        at="msgservice.log.store:Store._append_on_full_disk",
        old="[] if any(page.is_membership for page in group.pages) else group.due",
        new="group.due",
        catcher=_test(
            "tests/unit/test_log_faults.py::"
            "test_47_what_is_due_waits_for_who_is_to_become_a_member_with_a_page_without_room",
            "test_47_what_is_due_waits_for_who",
        ),
    ),
    Mutant(
        name="what-is-due-is-retained-in-silence",
        at="msgservice.node.acceptance:Acceptance.decide_due",
        old="self._retained.coming(batch.subject, batch.size)",
        new="pass",
        catcher=_test(
            "tests/unit/test_node_retained.py::"
            "test_48_what_becomes_due_with_the_flag_is_known_to_who_joins_while_it_is_stored",
            "test_48_what_becomes_due",
        ),
    ),
    Mutant(
        name="what-waits-is-copied",
        at="msgservice.log.replaying:_Acknowledged.of",
        old="settled = min(max(self._cursor - first + 1, 0), row.messages)",
        new="settled = row.messages",
        catcher=_test(
            "tests/contract/test_log_replay.py::"
            "test_47_a_rewind_copies_nothing_that_ended_otherwise_or_waits",
            "test_47_a_rewind_copies_nothing",
        ),
    ),
    Mutant(
        name="times-of-rows-go-back",
        at="msgservice.log.store:Store.decide",
        old="max(group.now, state.stored_at)",
        new="group.now",
        catcher=_test(
            "tests/contract/test_log_replay.py::test_47_times_of_rows_do_not_go_back",
            "test_47_times_of_rows_do_not_go_back",
        ),
    ),
    # --- dead letters, in the log
    Mutant(
        name="letters-that-are-not-all-there-are-sent-again",
        at="msgservice.log.staging:take_letters",
        old="count != len(taken.positions) or wanted & gone",
        new="wanted & gone",
        catcher=_test(
            "tests/contract/test_log_letters.py::test_46_letters_that_are_not_all_there_stay_and_nothing_is_stored",
            "test_46_letters_that_are_not_all_there_stay_and_nothing_is_stored",
        ),
    ),
    Mutant(
        name="a-letter-goes-twice-in-a-group",
        at="msgservice.log.staging:take_letters",
        old="        gone |= wanted\n",
        new="",
        catcher=_test(
            "tests/contract/test_log_letters.py::test_46_a_letter_goes_once_in_a_group",
            "test_46_a_letter_goes_once_in_a_group",
        ),
    ),
    Mutant(
        name="a-letter-that-is-sent-again-stays",
        at="msgservice.log.staging:take_letters",
        old="        operations.append((_DELETE_LETTERS, where))\n",
        new="",
        catcher=_test(
            "tests/contract/test_log_letters.py::test_46_what_is_sent_again_is_appended_as_its_letter_goes",
            "test_46_what_is_sent_again_is_appended_as_its_letter_goes",
        ),
    ),
    Mutant(
        name="a-letter-goes-whose-copy-finds-no-room",
        at="msgservice.log.staging:take_letters",
        old="coming and used + coming > entry.used_max + freed + size",
        new="False",
        catcher=_test(
            "tests/contract/test_log_letters.py::test_46_what_finds_no_room_stays_a_letter",
            "test_46_what_finds_no_room_stays_a_letter",
        ),
    ),
    Mutant(
        name="letters-go-to-who-is-removed",
        at="msgservice.log.staging:_is_for_removed",
        old="at is None or at.removed or number in entry.removed",
        new="at is None",
        catcher=_test(
            "tests/contract/test_log_letters.py::test_46_letters_stay_where_who_is_to_get_them_is_removed",
            "test_46_letters_stay_where_who_is_to_get_them_is_removed",
        ),
    ),
    Mutant(
        name="what-letters-took-stays-counted",
        at="msgservice.log.staging:take_letters",
        old="        staged.add_letters(number, -count, -size)\n",
        new="",
        catcher=_test(
            "tests/contract/test_log_letters.py::test_46_letters_that_are_dropped_go_with_their_bytes",
            "test_46_letters_that_are_dropped_go_with_their_bytes",
        ),
    ),
    Mutant(
        name="what-is-due-goes-in-any-order",
        at="msgservice.log.delayed:due",
        old="numbers.append(number)",
        new="numbers.insert(0, number)",
        catcher=_test(
            "tests/contract/test_log_delayed.py::test_43_what_is_due_goes_to_the_end_in_the_order_of_due_and_then_of_acceptance",
            "test_43_what_is_due_goes_to_the_end_in_t",
        ),
    ),
    Mutant(
        name="what-waits-is-moved-twice",
        at="msgservice.log.delayed:Change.move",
        old="self.leaving |= leaving",
        new="pass",
        catcher=_test(
            "tests/contract/test_log_delayed.py::test_43_what_is_due_goes_to_the_end_in_the_order_of_due_and_then_of_acceptance",
            "test_43_what_is_due_goes_to_the_end_in_t",
        ),
    ),
    Mutant(
        name="what-stays-before-a-page-is-not-waited-for",
        at="msgservice.log.delayed:Change._next_due",
        old="if count == len(self.leaving):",
        new="if True:",
        catcher=_test(
            "tests/contract/test_log_delayed.py::test_what_stays_before_what_is_moved_is_due_first",
            "test_what_stays_before_what_is_moved_is_due_first",
        ),
    ),
    Mutant(
        name="what-waits-is-not-known-when-it-comes-again",
        at="msgservice.log.delayed:StoredRuns.runs",
        old="if state.waiting.count:",
        new="if False:",
        catcher=_test(
            "tests/contract/test_log_delayed.py::test_43_what_comes_again_is_known_while_it_waits_and_when_it_was_moved",
            "test_43_what_comes_again_is_known_while_",
        ),
    ),
    Mutant(
        name="a-cut-run-is-moved-as-it-was",
        at="msgservice.log.delayed:Change.move",
        old="if count != batch.count:",
        new="if False:",
        catcher=_test(
            "tests/contract/test_log_delayed.py::test_a_run_of_which_a_part_was_cancelled_is_not_moved_as_it_was",
            "test_a_run_of_which_a_part_was_cancelled",
        ),
    ),
    # --- dead letters, at the node
    Mutant(
        name="letters-are-sent-again-to-everybody",
        at="msgservice.node.letters:Letters._page",
        old="audience = self._directory.alone(target)",
        new="audience = self._directory.audience(chosen[0].subject)",
        catcher=_test(
            "tests/unit/test_node_letters.py::test_46_letters_may_be_sent_to_another_receiver",
            "test_46_letters_may_be_sent_to_another_receiver",
        ),
    ),
    Mutant(
        name="letters-that-have-gone-are-still-counted",
        at="msgservice.node.letters:Letters._page",
        old="self._room.gone(row, touched.size, len(chosen), again=act == REQUEUE)",
        new="pass",
        catcher=_test(
            "tests/unit/test_node_letters.py::test_46_letters_that_are_dropped_are_gone_and_their_receiver_may_have_others",
            "test_46_letters_that_are_dropped_are_gone_and_their_receiver_may_have_others",
        ),
    ),
    Mutant(
        name="a-letter-that-finds-no-room-is-told-as-sent",
        at="msgservice.node.letters:Letters._page",
        old='if outcome == "stored":',
        new='if outcome != "void":',
        catcher=_test(
            "tests/unit/test_node_letters.py::test_46_letters_whose_copies_find_no_room_stay_and_that_is_told",
            "test_46_letters_whose_copies_find_no_room_stay_and_that_is_told",
        ),
    ),
    Mutant(
        name="an-event-that-is-dead-has-an-event",
        at="msgservice.node.letters:Events.of",
        old='if letter.subject.startswith(f"{DEAD}."):',
        new="if False:",
        catcher=_test(
            "tests/unit/test_node_letters.py::test_46_an_event_that_becomes_a_dead_letter_is_told_to_nobody",
            "test_46_an_event_that_becomes_a_dead_letter_is_told_to_nobody",
        ),
    ),
    Mutant(
        name="whoever-receives-everything-receives-events",
        at="msgservice.core.subjects:SubjectMatcher.match",
        old="if is_reserved(subject):",
        new="if False:",
        catcher=_test(
            "tests/unit/test_node_letters.py::test_57_what_begins_with_a_dollar_is_got_by_who_says_so",
            "test_57_what_begins_with_a_dollar_is_got_by_who_says_so",
        ),
    ),
    Mutant(
        name="who-may-send-letters-again-chooses-who-gets-them",
        at="msgservice.node.admin:Admin._dead_requeue",
        old='if asked.to not in (None, asked.receiver) and not who.allows("to", asked.to or ""):',
        new="if False:",
        catcher=_test(
            "tests/unit/test_node_letters.py::test_46_who_may_send_letters_again_may_not_choose_who_gets_them",
            "test_46_who_may_send_letters_again_may_not_choose_who_gets_them",
        ),
    ),
    # --- peek
    Mutant(
        name="what-is-settled-is-looked-at",
        at="msgservice.node.peek:Peek.next",
        old="position > backlog.cursor and position not in backlog.above",
        new="True",
        catcher=_test(
            "tests/unit/test_node_peek.py::test_49_what_is_settled_is_not_told_wherever_it_lies",
            "test_49_what_is_settled_is_not_told_wherever_it_lies",
        ),
    ),
    Mutant(
        name="a-look-begins-anew-in-each-batch",
        at="msgservice.node.peek:Peek.next",
        old="range(max(batch.first, begin + 1), batch.last + 1)",
        new="range(batch.first, batch.last + 1)",
        catcher=_test(
            "tests/unit/test_node_peek.py::test_49_pages_leave_nothing_out_and_repeat_nothing",
            "test_49_pages_leave_nothing_out_and_repeat_nothing",
        ),
    ),
    Mutant(
        name="a-path-that-ends-elsewhere",
        at="msgservice.node.acceptance:_path_of",
        old="origin.path[-1] != node_log",
        new="False",
        catcher=_test("tests/unit/test_node_chains.py", "test_a_forged_origin_is_refused"),
    ),
    Mutant(
        name="a-loop-without-guard",
        at="msgservice.node.acceptance:Acceptance.audience",
        old="if path and not self._own_ids.isdisjoint(path):",
        new="if False:",
        catcher=_test("tests/unit/test_node_chains.py", "test_what_comes_back_is_acknowledged"),
    ),
    Mutant(
        name="a-loop-decided-again",
        at="msgservice.node.acceptance:Acceptance._audience_now",
        old="if not self._own_ids.isdisjoint(path):",
        new="if False:",
        catcher=_test("tests/unit/test_node_chains.py", "test_what_comes_back_goes_to_nobody"),
    ),
    Mutant(
        name="back-to-where-it-has-been",
        at="msgservice.node.directory:Directory.audience",
        old="if path and self._next_nodes:",
        new="if False:",
        catcher=_test("tests/unit/test_node_chains.py", "test_nothing_goes_back_to_a_node"),
    ),
    Mutant(
        name="lanes-of-a-node-by-subject",
        at="msgservice.node.ingress:Ingress._lane",
        old='lane_of(origin, "", subject) if self._sender.node_log else subject',
        new="subject",
        catcher=_test("tests/unit/test_node_chains.py", "test_the_lanes_of_two_producers"),
    ),
    Mutant(
        name="who-relays-is-not-asked",
        at="msgservice.node.greeting:Greeter._check_relays",
        old='not allowed.allows("relay", "")',
        new="False",
        catcher=_test("tests/unit/test_node_chains.py", "test_only_who_may_relay"),
    ),
    Mutant(
        name="another-node-than-was-dialled",
        at="msgservice.node.greeting:Greeter._answered_by_node",
        old="if hello.name != dialled.name:",
        new="if False:",
        catcher=_test("tests/unit/test_node_chains.py", "test_a_node_that_is_not_who_was_dialled"),
    ),
    Mutant(
        name="require-is-passed-on",
        at="msgservice.message:passed_on",
        old="options.flags & ~FLAG_REQUIRE",
        new="options.flags",
        catcher=_test("tests/unit/test_node_chains.py", "test_what_is_passed_on_has_its_origin"),
    ),
    Mutant(
        name="who-was-away-long-gets-all-again",
        at="msgservice.node.outlet:Outlet.forgotten",
        old="before == log_id and not highest",
        new="False",
        catcher=_test(
            "tests/unit/test_node_chains.py", "test_a_node_that_has_forgotten_who_was_away"
        ),
    ),
    Mutant(
        name="another-log-is-not-looked-at",
        at="msgservice.node.outlet:Outlet.forgotten",
        old="missing.append((following, last))",
        new="missing.append((following, last if before == log_id else -1))",
        catcher=_test("tests/unit/test_node_chains.py", "test_what_a_node_has_lost_is_sent_again"),
    ),
    Mutant(
        name="a-loss-below-what-is-there-is-not-seen",
        at="msgservice.node.outlet:Outlet.forgotten",
        old="missing.append((following, low - 1))",
        new="pass",
        catcher=_test("tests/unit/test_node_chains.py", "test_what_a_node_has_lost_below"),
    ),
    Mutant(
        name="a-loss-during-a-replay-is-not-sent-again",
        at="msgservice.node.replayer:Replayer._widen",
        old="wide = _both(replay, lost)",
        new="wide = replay",
        catcher=_test("tests/unit/test_node_chains.py", "test_what_a_node_has_lost_while"),
    ),
    Mutant(
        name="lost-copies-are-not-sent-again",
        at="msgservice.log.replaying:copies",
        old="copied = 0",
        new="pass",
        catcher=_test("tests/unit/test_node_chains.py", "test_copies_that_a_node_has_lost"),
    ),
    Mutant(
        name="each-loss-doubles-what-is-sent-again",
        at="msgservice.log.replaying:_CopiedBefore.without",
        old="not self._has(original)",
        new="True",
        catcher=_test(
            "tests/unit/test_node_chains.py", "test_what_a_node_has_lost_is_sent_again_once"
        ),
    ),
    Mutant(
        name="what-was-lost-never-expires",
        at="msgservice.log.replaying:copies",
        old="expires=replay.kind != REWIND",
        new="expires=False",
        catcher=_test("tests/unit/test_node_chains.py", "test_what_a_node_has_lost_expires"),
    ),
    Mutant(
        name="a-new-incarnation-is-taken-for-a-loss",
        at="msgservice.node.outlet:Outlet.begins_anew",
        old="self._acked_to, self._was_seated = 0, False",
        new="pass",
        catcher=_test("tests/unit/test_node_chains.py", "test_what_a_new_incarnation"),
    ),
    Mutant(
        name="what-is-moved-is-told-to-nobody",
        at="msgservice.node.tracker:Tracker.routed",
        old="self._tell_news_of(watch, pieces)",
        new="pass",
        catcher=_test(
            "tests/unit/test_node_delayed.py::test_43_it_is_acknowledged_and_told_when_it_is_due_and_delivered_then",
            "test_43_it_is_acknowledged_and_told_when",
        ),
    ),
    Mutant(
        name="a-backlog-refuses-what-is-due-later",
        at="msgservice.node.acceptance:Acceptance.full",
        old="(None if delayed else self._backlogs.full(audience))",
        new="self._backlogs.full(audience)",
        catcher=_test(
            "tests/unit/test_node_delayed.py::test_43_a_backlog_that_is_full_refuses_nothing_that_is_due_later",
            "test_43_a_backlog_that_is_full_refuses_n",
        ),
    ),
    Mutant(
        name="anybody-cancels-what-is-anothers",
        at="msgservice.node.admin:Admin._cancel",
        old="if own is not None and not who.has_sent(found.sender):",
        new="if False:",
        catcher=_test(
            "tests/unit/test_node_delayed.py::test_27_only_what_is_ones_own_is_cancelled_or_listed_without_the_right",
            "test_27_only_what_is_ones_own_is_cancell",
        ),
    ),
    Mutant(
        name="what-is-cancelled-is-not-told",
        at="msgservice.node.delayed:DelayedMessages.cancel",
        old="self._tracker.cancelled(wanted, ranges)",
        new="pass",
        catcher=_test(
            "tests/unit/test_node_delayed.py::test_49_what_is_cancelled_is_told_and_delivered_to_nobody",
            "test_49_what_is_cancelled_is_told_and_de",
        ),
    ),
    Mutant(
        name="what-is-only-retained-is-updated-nowhere-else",
        at="msgservice.node.directory:Directory.next_nodes",
        old="if not self._nodes:",
        new="if True:",
        catcher=_test("tests/unit/test_node_chains.py", "test_what_is_only_retained_is_retained"),
    ),
    Mutant(
        name="what-was-only-retained-is-delivered-when-sent-again",
        at="msgservice.log.replaying:copies",
        old="never = 0 if replay.kind == START else FLAG_RETAIN_ONLY",
        new="never = 0",
        catcher=_test("tests/unit/test_node_chains.py", "test_what_was_only_retained_and_lost"),
    ),
    Mutant(
        name="an-empty-log-is-handed-nothing-that-is-retained",
        at="msgservice.node.outlet:Outlet.is_empty_anew",
        old="self.row.inbox != log_id",
        new="False",
        catcher=_test("tests/unit/test_node_chains.py", "test_a_node_with_an_empty_log_gets"),
    ),
    # --- streams with a node
    Mutant(
        name="what-a-removed-receiver-never-gets-is-waited-for",
        at=f"{STREAMS}._done_to",
        old="max(self._handed_on, self._given_up)",
        new="self._handed_on",
        catcher=_stream("test_rule_5_2_what_a_removed_receiver_never_gets_is_not_waited_for"),
    ),
    Mutant(
        name="a-line-of-the-log-for-each-that-is-left-out",
        at=f"{STREAMS}._unreadable",
        old="if self._left_out_at is not None:",
        new="if False:",
        catcher=_stream("test_of_many_messages_that_no_line_can_say_the_log_has_few_lines"),
    ),
    Mutant(
        name="timers-of-headers-that-have-gone",
        at=f"{LIVE}.header_set",
        old="self._end_never(key)\n",
        new="pass\n",
        catcher=_live("test_rule_5_9_a_header_that_has_gone_keeps_nothing_until_its_ttl_is_over"),
    ),
    Mutant(
        name="a-listener-joins-in-the-past-of-its-header",
        at=f"{STREAMS}._joined",
        old="cursor.position = header.newest",
        new="pass",
        catcher=_stream("test_rule_5_2_what_was_put_before_a_header_is_read_is_in_its_past"),
    ),
    Mutant(
        name="all-calls-in-one-turn",
        at="msgservice.transport.pb.broker:BoundedBroker._take_in",
        old="if self._now() >= end:",
        new="if False:",
        catcher=_test("tests/unit/test_pb_broker.py", "test_calls_that_came_together"),
    ),
    Mutant(
        name="requests-all-at-once",
        at="msgservice.node.perspectives:Perspective._go_on",
        old="while self._asked and self._answering < house.limits.answering:",
        new="while self._asked:",
        catcher=_test("tests/unit/test_pb_perspectives.py", "test_no_more_than_answering"),
    ),
    Mutant(
        name="answers-for-who-reads-none",
        at="msgservice.node.perspectives:Perspective._go_on",
        old="if not channel.is_writable:",
        new="if False:",
        catcher=_test("tests/unit/test_pb_perspectives.py", "test_nothing_more_is_answered"),
    ),
    Mutant(
        name="the-last-login-counts-alone",
        at="msgservice.node.perspectives:Perspectives.end_what_holds_no_more",
        old="for perspective in here)",
        new="for perspective in here[-1:])",
        catcher=_test("tests/integration/test_pb_plain.py", "test_of_two_logins"),
    ),
    Mutant(
        name="a-view-is-let-go-twice",
        at="msgservice.transport.pb.broker:BoundedBroker.proto_uncache",
        old="found.broker = None",
        new="pass",
        catcher=_test("tests/unit/test_pb_broker.py", "test_what_is_uncached_is_not_let_go"),
    ),
    Mutant(
        name="who-has-let-go-is-told",
        at="msgservice.node.view:_Watcher.stop",
        old="self._is_stopped = True",
        new="pass",
        catcher=_test("tests/unit/test_pb_view.py", "test_who_has_let_go_is_told_nothing_more"),
    ),
    Mutant(
        name="a-call-larger-than-the-other-end-takes",
        at="msgservice.pb:PeerBroker._checked",
        old="if size > most:",
        new="if False:",
        catcher=_test("tests/integration/test_pb_peers.py", "test_what_cannot_cross_is_an_error"),
    ),
    Mutant(
        name="a-loss-is-not-seen-after-a-restart",
        at="msgservice.node.outlet:Outlet.forgotten",
        old="if before != log_id or not self._was_seated:",
        new="if before != log_id:",
        catcher=_test("tests/simulation/test_chains.py", "test_a_log_that_is_put_back"),
    ),
    Mutant(
        name="what-comes-back-is-retained-again",
        at="msgservice.node.acceptance:Acceptance._flags_of",
        old="if not self._own_ids.isdisjoint(path):",
        new="if False:",
        catcher=_test(
            "tests/unit/test_node_chains.py", "test_what_comes_back_takes_the_place_of_nothing"
        ),
    ),
    Mutant(
        name="a-copy-of-what-was-retained-takes-the-place-of-newer",
        at="msgservice.node.acceptance:Acceptance._flags_of",
        old="if not self._retained.has(transfer.subject):",
        new="if True:",
        catcher=_test(
            "tests/unit/test_node_chains.py", "test_what_was_retained_before_a_node_was_made"
        ),
    ),
    Mutant(
        name="what-was-a-node-is-taken-for-one",
        at="msgservice.node.receivers:Receivers._moved",
        old="if is_node(row.address) != is_node(address):",
        new="if False:",
        catcher=_test("tests/unit/test_node_chains.py", "test_what_is_no_node_any_more"),
    ),
    Mutant(
        name="a-sender-takes-the-place-of-a-node",
        at="msgservice.node.connections:Connections.opened",
        old="if peer.is_next_node:",
        new="if False:",
        catcher=_test("tests/unit/test_node_chains.py", "test_no_sender_takes_the_place"),
    ),
    Mutant(
        name="a-listener-misses-what-came-while-its-header-was-read",
        at=f"{STREAMS}._joined",
        old="if stream.head <= header.newest:",
        new="if True:",
        catcher=_stream(
            "test_rule_5_2_what_is_put_while_a_header_is_read_comes_once_and_behind_it"
        ),
    ),
    Mutant(
        name="a-listener-without-a-header",
        at=f"{STREAMS}._joined",
        old="if header.body is not None:",
        new="if False:",
        catcher=_stream("test_rule_5_3_who_listens_gets_the_header_first_and_then_what_is_put"),
    ),
    Mutant(
        name="a-header-is-told-to-who-listens",
        at=f"{STREAMS}._message",
        old='retain="only"',
        new="retain=True",
        catcher=_stream("test_rule_5_3_who_listens_gets_the_header_first_and_then_what_is_put"),
    ),
    Mutant(
        name="a-deleted-stream-keeps-its-header",
        at=f"{STREAMS}._message",
        old="retain=action == DELETE",
        new="retain=False",
        catcher=_stream("test_rule_5_3_delete_forgets_the_header_and_close_keeps_it"),
    ),
    Mutant(
        name="listens-twice",
        at=f"{STREAMS}._listen",
        old="if key in listener.keys:",
        new="if False:",
        catcher=_stream(
            "test_decision_11_to_listen_twice_is_to_listen_once_and_the_header_comes_once"
        ),
    ),
    Mutant(
        name="goes-on-with-a-foreign-token",
        at=f"{STREAMS}._listen",
        old="log_id != self._node.log_id or not is_number",
        new="not is_number",
        catcher=_stream("test_rule_5_4_a_token_that_is_foreign_or_of_the_future_is_a_gap"),
    ),
    Mutant(
        name="goes-on-from-the-future",
        at=f"{STREAMS}._paged",
        old="page.is_gap or (cursor.is_resumed and cursor.position > page.newest)",
        new="page.is_gap",
        catcher=_stream("test_rule_5_4_a_token_that_is_foreign_or_of_the_future_is_a_gap"),
    ),
    Mutant(
        name="goes-on-with-a-token-that-is-too-old",
        at=f"{STREAMS}._paged",
        old="page.is_gap or (cursor.is_resumed and cursor.position > page.newest)",
        new="cursor.is_resumed and cursor.position > page.newest",
        catcher=_stream("test_rule_5_4_a_token_older_than_what_is_kept_is_a_gap"),
    ),
    Mutant(
        name="a-slow-listener-is-not-told-of-its-gap",
        at="msgservice.log.queries:of_stream",
        old="is_gap = after + 1 < position_of(state.oldest)",
        new="is_gap = False",
        catcher=_stream("test_rule_5_5_a_slow_listener_pins_nothing_and_is_told_of_the_gap"),
    ),
    Mutant(
        name="the-rest-of-a-batch-that-has-gone-is-no-gap",
        at="msgservice.log.queries:of_stream",
        old="is_gap = after + 1 < position_of(state.oldest)",
        new="is_gap = number_of(after) + 1 < state.oldest",
        catcher=_stream("test_rule_5_4_a_token_in_the_midst_of_a_batch_that_has_gone_is_a_gap"),
    ),
    Mutant(
        name="a-page-without-messages-is-the-end",
        at="msgservice.log.queries:of_stream",
        old="looked_at = newest if len(found) < PAGE_ROWS else found[-1][0]",
        new="looked_at = newest",
        catcher=_stream("test_rule_5_4_what_was_put_behind_many_headers_is_not_missed"),
    ),
    Mutant(
        name="a-stream-without-what-the-forgotten-put",
        at="msgservice.log.queries:of_stream",
        old="is_anybodys=True",
        new="is_anybodys=False",
        catcher=_test(
            "tests/contract/test_log_streams.py",
            "test_rule_5_4_what_a_sender_put_who_is_just_forgotten_is_not_left_out",
        ),
    ),
    Mutant(
        name="copies-of-headers-are-put",
        at="msgservice.log.queries:of_stream",
        old="flags & _NOT_PUT",
        new="flags & 2",
        catcher=_test(
            "tests/contract/test_log_streams.py", "test_rule_5_3_headers_and_their_copies"
        ),
    ),
    Mutant(
        name="any-header-named-stream-ends-it",
        at="msgservice.faces.streams.durable:_is_end",
        old="headers.get(KIND) in (CLOSE, DELETE)",
        new="KIND in headers",
        catcher=_stream("test_a_client_ends_a_stream_by_a_header_that_says_so_and_by_no_other"),
    ),
    Mutant(
        name="pages-of-many-streams-at-once",
        at=f"{STREAMS}._paged",
        old="if cursor.listener.is_full:",
        new="if False:",
        catcher=_stream(
            "test_rule_5_5_one_that_resumes_many_streams_is_given_them_one_after_the_other"
        ),
    ),
    Mutant(
        name="what-came-while-the-receiver-was-removed-is-missed",
        at=f"{STREAMS}._look",
        old="self._page_all()",
        new="pass",
        catcher=_stream(
            "test_rule_5_1_a_receiver_that_somebody_removes_is_made_again_and_nothing_is_missed"
        ),
    ),
    Mutant(
        name="who-may-not-receive-any-more-waits",
        at=f"{STREAMS}._look",
        old="self._end(stream, cursor, REFUSED)",
        new="pass",
        catcher=_stream(
            "test_decision_21_whose_right_is_taken_away_is_told_and_not_left_to_wait[less]"
        ),
    ),
    Mutant(
        name="what-threads-put-is-not-sent-at-the-end",
        at=f"{LIVE}.end",
        old="self._take_from_threads()",
        new="pass",
        catcher=_live("test_a_server_that_stops_sends_what_other_threads_had_put"),
    ),
    Mutant(
        name="lines-that-grew-have-no-limit",
        at=f"{LIVE}._line",
        old="if len(line) - 1 > limits.line_bytes:",
        new="if False:",
        catcher=_live("test_decision_19_nothing_longer_is_sent_though_it_grew_when_it_was_encoded"),
    ),
    Mutant(
        name="nesting-is-counted-from-the-second-pass",
        at="msgservice.faces.streams.content:_check_nesting",
        old="depth += 1",
        new="pass",
        catcher=_live("test_decision_18_what_is_nested_is_counted_exactly[3]"),
    ),
    Mutant(
        name="a-remote-stream-is-closed-before-its-connections",
        at="msgservice.faces.streams.remote:RemoteStream._close",
        old="await gatherResults(list(self._ending))",
        new="pass",
        catcher=_test(
            "tests/unit/test_streams_remote.py",
            "test_closing_is_over_when_every_connection_has_ended_and_may_be_asked_again",
        ),
    ),
    Mutant(
        name="a-list-before-what-was-put",
        at=f"{STREAMS}.take",
        old="if publisher is not None and not self._is_done(publisher):",
        new="if False:",
        catcher=_stream(
            "test_rule_5_9_a_list_comes_when_all_that_its_connection_has_put_is_stored"
        ),
    ),
    Mutant(
        name="what-was-written-is-asked-of-the-next",
        at=f"{RESPONDERS}._flush",
        old="queued, responder.queued = responder.queued, {}",
        new="queued = dict(responder.queued)",
        catcher=_asked("one_who_goes_afterwards_may_have_handled_it_and_nobody_else_is_asked"),
    ),
    Mutant(
        name="an-answer-from-who-was-not-asked",
        at=f"{RESPONDERS}.answered",
        old="if run is None or run.responder is not responder or run in queued:",
        new="if run is None:",
        catcher=_play("each_request_is_answered_once_or_fails_and_no_answer_reaches_another"),
    ),
    Mutant(
        name="an-answer-to-the-call-beside",
        at=f"{RESPONDERS}._give",
        old="shift=number - first",
        new="shift=number - first + 1",
        catcher=_play("each_request_is_answered_once_or_fails_and_no_answer_reaches_another"),
    ),
    Mutant(
        name="what-who-went-has-asked-stays",
        at=f"{RESPONDERS}.forget",
        old="len(self._drop(run))",
        new="0",
        catcher=_asked("an_asker_that_has_gone_leaves_nothing_and_its_answer_reaches_nobody"),
    ),
    Mutant(
        name="a-call-whose-time-is-over-stays",
        at=f"{RESPONDERS}._expire",
        old="if run.left:",
        new="if False:",
        catcher=_asked("answers_late_twice_or_from_another_are_dropped_and_counted"),
    ),
    Mutant(
        name="one-who-answers-is-asked-all",
        at="msgservice.node.responders:_shares",
        old="turn.at = (place + 1) % size",
        new="turn.at = 0",
        catcher=_asked("several_who_answer_are_asked_in_turn_and_a_frame_is_shared_among_them"),
    ),
    Mutant(
        name="an-undo-cancels-what-may-have-been-sent",
        at="msgservice.node.undo:Undo._at",
        old="sure = max(outlet.backlog.stored_before, outlet.backlog.landed_to)",
        new="sure = 0",
        catcher=_test("tests/unit/test_node_undo.py", "who_was_taken_from_and_may_have_it"),
    ),
    Mutant(
        name="in-a-swarm-an-undo-cancels-what-may-have-been-sent",
        at="msgservice.node.undo:Undo._at",
        old="sure = max(outlet.backlog.stored_before, outlet.backlog.landed_to)",
        new="sure = 0",
        catcher=_swarm("undo", "undone, and handled"),
    ),
    Mutant(
        name="in-a-swarm-an-undo-says-nothing-of-what-is-in-flight",
        at="msgservice.node.undo:Undo._at",
        old="work.tell(number, IN_FLIGHT, waiting - cancelled)",
        new="",
        catcher=_swarm("undo", "an undo does not add up"),
    ),
    Mutant(
        name="in-a-swarm-an-undo-leaves-all-that-is-open",
        at="msgservice.node.undo:Undo._at",
        old="sure = max(outlet.backlog.stored_before, outlet.backlog.landed_to)",
        new="sure = 1 << 60",
        catcher=_swarm("undo", "left to an answer, and never sent"),
    ),
    Mutant(
        name="an-account-of-two-of-one-name-is-that-of-the-newer",
        at="msgservice.node.undo:Undo.page",
        old="told.setdefault(self._name(number), Counter()).update(outcomes)",
        new="told[self._name(number)] = Counter(outcomes)",
        catcher=_test(
            "tests/unit/test_node_undo.py",
            "one_that_was_removed_and_came_again_under_its_name_has_the_account_of_both",
        ),
    ),
    Mutant(
        name="who-is-away-is-in-line",
        at="msgservice.node.why:_Look._standing_still",
        old="if delivery.connection is not None:",
        new="if True:",
        catcher=_swarm("why", "a cause is not so"),
    ),
    Mutant(
        name="who-attached-is-away",
        at="msgservice.node.why:_Look._standing_still",
        old="if delivery.connection is not None:",
        new="if delivery.row.address is not None:",
        catcher=_swarm("why", "a cause is not so"),
    ),
    Mutant(
        name="why-says-of-what-is-final-what-it-says-of-others",
        at="msgservice.node.operations:Operations.why",
        old="elif at.status.final or outlet is None:",
        new="elif outlet is None:",
        catcher=_swarm("why", "a cause is of another state"),
    ),
    Mutant(
        name="why-forgets-the-last-of-an-audience",
        at="msgservice.node.operations:Operations.why",
        old="for at in told:",
        new="for at in told[:1]:",
        catcher=_swarm("why", "why is told of others"),
    ),
    Mutant(
        name="an-undo-forgets-what-was-settled-meanwhile",
        at="msgservice.node.undo:Undo._at",
        old="work.again[number] = (parts, 0)",
        new="pass",
        catcher=_test("tests/unit/test_node_undo.py", "one_that_is_removed_meanwhile"),
    ),
    Mutant(
        name="the-other-sender-of-a-key-is-not-told-of-its-undo",
        at="msgservice.node.undo:Undo._store",
        old="if piece.first in taken and piece.position:",
        new="if False:",
        catcher=_test("tests/unit/test_node_undo.py", "what_a_second_sender_has_of_a_key"),
    ),
    Mutant(
        name="in-a-swarm-an-answer-goes-to-the-call-beside",
        at=f"{RESPONDERS}.answered",
        old="told.append((number + run.shift, ok, raw))",
        new="told.append((number + run.shift + 1, ok, raw))",
        catcher=_swarm("ask", "an answer reaches another", seeds=60),
    ),
    Mutant(
        name="each-subject-has-a-turn-of-its-own",
        at=f"{RESPONDERS}._turn_among",
        old="turn = self._among.get(of)",
        new="turn = None",
        catcher=_asked("calls_on_different_subjects_are_shared_out_in_turn_as_well"),
    ),
    Mutant(
        name="a-responder-says-what-the-node-alone-knows",
        at=f"{RESPONDERS}.answered",
        old="if not ok and",
        new="if False and",
        catcher=_asked("what_the_node_alone_knows_no_responder_says"),
    ),
    Mutant(
        name="nobody-is-ever-busy",
        at="msgservice.node.responders:Responder.free",
        old="self.room - self.pending",
        new="self.room",
        catcher=_asked("who_has_as_many_as_it_takes_is_passed_over_and_all_busy_is_said_at_once"),
    ),
    Mutant(
        name="who-goes-is-waited-for",
        at=f"{RESPONDERS}.lost",
        old="self._fail(run, ResponderLost(run.subject))",
        new="pass",
        catcher=_asked("one_who_goes_afterwards_may_have_handled_it_and_nobody_else_is_asked"),
    ),
    Mutant(
        name="who-goes-before-it-was-written-to-loses-it",
        at=f"{RESPONDERS}.leaves",
        old="self._place(run.asker",
        new="(lambda *_: None)(run.asker",
        catcher=_asked(
            "one_who_goes_before_it_was_written_to_is_asked_nothing_and_the_next_one_is"
        ),
    ),
    Mutant(
        name="what-is-no-message-is-passed-on",
        at=f"{RESPONDERS}.answered",
        old="message = decode_message(raw)",
        new='message = decode_message(bytes.fromhex("91c400"))',
        catcher=_asked("what_is_no_message_ends_who_said_it_and_nobody_else"),
    ),
    Mutant(
        name="everybody-may-ask",
        at=f"{RESPONDERS}.ask",
        old='if not who.allows("request", frame.subject):',
        new="if False:",
        catcher=_asked("rights_are_asked_of_both_sides"),
    ),
    Mutant(
        name="everybody-may-answer",
        at="msgservice.node.gate:Pass.check_responds",
        old='if not self.allows("receive", pattern):',
        new="if False:",
        catcher=_asked("rights_are_asked_of_both_sides"),
    ),
    Mutant(
        name="the-nodes-own-subjects-are-answered",
        at="msgservice.node.greeting:Greeter._answers",
        old="if is_reserved(pattern):",
        new="if False:",
        catcher=_asked("a_pattern_of_the_nodes_own_subjects_is_refused[$node.>-9]"),
    ),
    Mutant(
        name="answers-pile-up",
        at="msgservice.node.peer:Peer.told",
        old="if self.connection.channel.unsent > self._limits.window_bytes:",
        new="if False:",
        catcher=_asked("answers_that_are_not_read_go_beyond_no_window"),
    ),
    Mutant(
        name="calls-wait-until-all-answers-are-looked-at",
        at="msgservice.client.requests:Requests._flush_early",
        old="self._connection.push()",
        new="pass",
        catcher=_test(
            "tests/unit/test_client_requests.py -k half_of_the_calls", "test_half_of_the_calls"
        ),
    ),
    Mutant(
        name="a-call-fails-with-those-of-its-frame-before-its-time",
        at="msgservice.client.requests:Requests._expire",
        old="if group.until > now and group.left:",
        new="if False:",
        catcher=_test(
            "tests/unit/test_client_requests.py -k their_own_time",
            "test_calls_that_share_a_frame_fail_when_their_own_time_is_over",
        ),
    ),
    Mutant(
        name="asked-again-on-the-next-connection",
        at="msgservice.client.requests:Requests.lost",
        old="self._connection = None",
        new="self._connection = None; self._parked |= {c.group: None for c in self._sent.values()};"
        " [c.group.calls.append(c) or setattr(c, 'number', 0) for c in self._sent.values()];"
        " self._sent = {}",
        catcher=_test(
            "tests/unit/test_client_requests.py"
            "::test_one_that_was_sent_is_ambiguous_when_the_connection_is_lost",
            "test_one_that_was_sent_is_ambiguous_when_the_connection_is_lost",
        ),
    ),
    Mutant(
        name="the-node-is-not-told-what-is-given-up",
        at="msgservice.client.requests:Requests._give_up",
        old="self._given_up.add(call.number)",
        new="pass",
        catcher=_play("each_request_is_answered_once_or_fails_and_no_answer_reaches_another"),
    ),
    Mutant(
        name="what-is-left-of-a-run-is-lost",
        at="msgservice.node.responders:Responders._take_out",
        old="for first, last in left:",
        new="for first, last in [*left][:1]:",
        catcher=_asked("whatever_is_asked_given_up_and_answered_in_any_order_adds_up[12]"),
    ),
    Mutant(
        name="others-are-given-up",
        at="msgservice.node.responders:Responders.cancel",
        old="asked = self._asked.get(asker)",
        new="asked = self._asked.get(asker) or next(iter(self._asked.values()), None)",
        catcher=_asked("nobody_gives_up_what_others_have_asked[ranges0]"),
    ),
    Mutant(
        name="who-was-asked-is-not-told",
        at="msgservice.node.responders:Responders._tell_unwanted",
        old="if responder.listens:",
        new="if False:",
        catcher=_asked("who_was_asked_is_told_in_one_frame_ahead_of_what_it_is_asked_next"),
    ),
    Mutant(
        name="what-is-given-up-is-asked-all-the-same",
        at="msgservice.node.responders:Responders._take_out",
        old="parts_of.run(first - run.first, last - run.first + 1)",
        new="parts_of.run(0, last - first + 1)",
        catcher=_asked("what_is_given_up_before_it_was_written_is_withdrawn"),
    ),
    Mutant(
        name="ready-before-the-node-knows",
        at="msgservice.client.responding:Responder.opened",
        old="connection.send(Ping(READY))",
        new="self._is_heard(connection)",
        catcher=_test(
            "tests/unit/test_responding.py",
            "test_57_it_is_ready_when_the_node_passes_requests_on_and_not_before",
        ),
    ),
    Mutant(
        name="a-socket-leads-anywhere",
        at="msgservice.transport.reach:ReachingReactor.connectTCP",
        old="self.check(host)",
        new="pass",
        catcher=_test(
            "tests/unit/test_reach.py",
            "test_a_name_that_has_another_address_each_time_is_dialled_where_it_may_be",
        ),
    ),
    Mutant(
        name="datagrams-lead-anywhere",
        at="msgservice.transport.udp.endpoint:UdpEndpoint._dial",
        old="check_reach(self._reactor, host)",
        new="pass",
        catcher=_test(
            "tests/integration/test_reach.py",
            "test_a_name_of_a_user_that_leads_to_what_only_the_node_reaches_is_not_dialled[udp]",
        ),
    ),
    Mutant(
        name="time-is-an-event",
        at="msgservice.node.web.events:Events.observed",
        old="replace_at(told, node.at) == node",
        new="False",
        catcher=_test(f"{EVENTS} -k only_time_has_passed", "only_time_has_passed"),
    ),
    Mutant(
        name="bodies-are-given-out",
        at="msgservice.node.web.bodies:_answering",
        old="if not allowed:",
        new="if False:",
        catcher=_test(
            "tests/integration/test_http_messages.py -k no_body_is_given_out",
            "no_body_is_given_out",
        ),
    ),
    Mutant(
        name="a-promise-is-decided-twice",
        at="msgservice.log.promises:stage_verdicts",
        old="gone[row[0], row[1]] = None",
        new="pass",
        catcher=_test(
            "tests/contract/test_log_promises.py -k decided_once",
            "test_55_a_promise_is_open_until_it_is_decided_and_decided_once",
        ),
    ),
    Mutant(
        name="a-verdict-about-a-part-is-about-the-run",
        at="msgservice.log.promises:_alike",
        old="low < first or high > last or",
        new="",
        catcher=_test(
            "tests/contract/test_log_promises.py -k whatever_verdicts",
            "test_55_each_message_is_decided_once_whatever_verdicts_come_together",
        ),
    ),
    Mutant(
        name="what-lies-between-promised-runs-is-decided-too",
        at="msgservice.log.promises:_alike",
        old="or count != high - low + 1",
        new="",
        catcher=_test(
            "tests/contract/test_log_promises.py -k whatever_verdicts",
            "test_55_each_message_is_decided_once_whatever_verdicts_come_together",
        ),
    ),
    Mutant(
        name="what-was-decided-with-it-is-decided-again",
        at="msgservice.log.promises:stage_verdicts",
        old="before.overlaps(first, last)",
        new="False",
        catcher=_test(
            "tests/contract/test_log_promises.py -k whatever_verdicts",
            "test_55_each_message_is_decided_once_whatever_verdicts_come_together",
        ),
    ),
    Mutant(
        name="a-promise-is-told-before-it-is-stored",
        at=f"{PROMISES}._store",
        old="done = self._commits.decide(verdict)",
        new="self._tracker.decided(verdict, ((verdict.first, verdict.last),), ());"
        " done = self._commits.decide(verdict)",
        catcher=_promised("a_verdict_whose_group_fails_is_stored_by_another"),
    ),
    Mutant(
        name="a-late-acknowledgement-decides-again",
        at=f"{PROMISES}._decide",
        old="one.left.remove(first, last)",
        new="pass",
        catcher=_promised("a_promise_is_kept_as_soon_as_enough_have_acknowledged"),
    ),
    Mutant(
        name="a-restored-log-cancels",
        at="msgservice.log.copying:_finish",
        old='copy.execute("update promise set cancels = 0")',
        new="pass",
        catcher=_test(
            "tests/contract/test_log_promises.py -k copy_cancels", "test_55_a_copy_cancels_nothing"
        ),
    ),
    Mutant(
        name="what-has-no-promise-is-counted",
        at=f"{PROMISES}.stored",
        old="promise = batch.promise",
        new='promise = batch.promise or OpenPromise("", "", 0, 0, 0, 9, 1 << 40, False)',
        catcher=_promised("a_sender_without_a_promise_is_told_of_none"),
    ),
    Mutant(
        name="a-removed-receiver-may-acknowledge-still",
        at=f"{PROMISES}.receiver_removed",
        old="if self._open:",
        new="if False:",
        catcher=_promised("a_removal_is_looked_up_in_all_that_is_open_some_at_a_time"),
    ),
    Mutant(
        name="a-part-hides-a-whole",
        at="msgservice.node.promises:_Open.found",
        old="if self.all_is_news:",
        new="if False:",
        catcher=_promised("whole_and_part_that_are_settled_together_decide_of_all"),
    ),
    Mutant(
        name="a-promise-is-kept-otherwise-than-told",
        at="msgservice.log.promises:stage_verdicts",
        old="state = (int(verdict.status), verdict.reason, staged.age)",
        new="state = (int(Status.EXPIRED), verdict.reason, staged.age)",
        catcher=_swarm("promise", "decided otherwise than told"),
    ),
    # --- programs for asyncio, and ones that block
    Mutant(
        name="a-message-that-nobody-got-is-gone",
        at="msgservice.receiver.deliveries:Deliveries.put_back",
        old="self._waiting.appendleft(taken)",
        new="pass",
        catcher=_test(f"{CALLS}::test_a_message_that_nobody_got_is_given_to_the_next", "given_to"),
    ),
    Mutant(
        name="what-comes-too-late-is-nobodys",
        at="msgservice.blocking.thread:Call._ended",
        old="self.drop()",
        new="pass",
        catcher=_test(
            f"{CALLS}::test_an_outcome_that_comes_after_its_call_was_given_up_is_not_wanted",
            "after_its_call_was_given_up",
        ),
    ),
    Mutant(
        name="each-call-wakes-the-reactor",
        at="msgservice.blocking.thread:ReactorThread._cross",
        old="self._is_woken = True",
        new="pass",
        catcher=_test(
            f"{CALLS}::test_calls_of_many_threads_wake_the_reactor_once", "wake_the_reac"
        ),
    ),
    Mutant(
        name="what-was-taken-and-cancelled-is-given-out",
        at="msgservice.receiver.deliveries:Deliveries._drop_cancelled",
        old="self._waiting[0][1].called",
        new="False",
        catcher=_test(
            f"{CALLS}::test_a_message_that_its_receiver_has_cancelled_is_given_to_nobody",
            "given_to_nobody",
        ),
    ),
]

MUTANTS = {mutant.name: mutant for mutant in _ALL}
