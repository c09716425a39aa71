"""The planted bugs: classics of services like this one, and every fault that this one had.

Each says what must find it, and by which sign: a proof that finds something else has not
understood it. A mutant that does not fit its function any more is an error, not a pass.
"""

from __future__ import annotations

from tests.mutants.plant import ByMachine, ByTest, Mutant


def _by(machine: str, *signs: str, seeds: int = 1500) -> ByMachine:
    return ByMachine(machine=machine, signs=signs, seeds=seeds)


def _test(path: str, sign: str) -> ByTest:
    return ByTest(path=path, sign=sign)


BACKLOG = "msgservice.core.backlog:Backlog"
FLIGHT = "msgservice.core.flight:Flight"
FLIGHT_LIMIT = "msgservice.core.flight_limit:FlightLimit"
INBOX = "msgservice.core.inbox:Inbox"
MARKS = "msgservice.core.marks:Marks"
ANSWERS = "msgservice.core.inbox:Answers"
INGRESS = "msgservice.node.ingress:Ingress"

_ALL = [
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
        old="lowest.first - 1",
        new="lowest.first",
        catcher=_by("outbox", "the cursor is above what is open"),
    ),
    Mutant(
        name="lane-goes-on-before-its-dead-letter-is-stored",
        at=f"{BACKLOG}.settle",
        old="refusal is not None and self._keeps_letters",
        new="False",
        catcher=_by("outbox", "sent behind a dead letter that is not stored"),
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
        name="unsorted-resend",
        at="msgservice.core.runs:ReadyQueue.push",
        old="heapq.heappush(back, run.first)",
        new="back.append(run.first)",
        catcher=_by("outbox", "lane order broken", "not in rising order"),
    ),
    Mutant(
        name="stuck-lane-goes-on",
        at=f"{BACKLOG}._place",
        old="if stuck is not None:",
        new="if stuck is not None and run.attempts:",
        catcher=_by("outbox", "lane order broken"),
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
        new="self._sent = backlog.__dict__.setdefault('sent', RangeSet())",
        catcher=_by("outbox", "an answer about what was not sent is believed"),
    ),
    Mutant(
        name="nacks-of-before-count",
        at=f"{FLIGHT}.receive_nack",
        old="self._nacks += 1",
        new="self._nacks = self._backlog.nacks = getattr(self._backlog, 'nacks', 0) + 1",
        catcher=_by("outbox", "more nacks than were sent"),
    ),
    Mutant(
        name="later-is-an-attempt",
        at=f"{BACKLOG}.refuse",
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
        old="if run.size <= self.batch_max:\n        return False\n    fitting",
        new="if run.size <= self.batch_max + 20:\n        return False\n    fitting",
        catcher=_by("outbox", "more than the peer takes"),
    ),
    Mutant(
        name="split-keeps-no-count",
        at=f"{BACKLOG}.split",
        old="tally.size += run.size - size",
        new="pass",
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
        old="self.marks.remember(last, arrival)",
        new="last == arrival.parts[-1][1] and self.marks.remember(last, arrival)",
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
        old="if self._taking and self._taking.overlaps(first, last):",
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
        old="for low, high in self.received.within(first, last):",
        new="for low, high in [(first, last)]:",
        catcher=_by("inbox", "answered more often than it came", "NeverSent in receive_ack"),
    ),
    # --- the node
    Mutant(
        name="ack-before-the-sync",
        at=f"{INGRESS}.received",
        old="commits.batch(batch, self)",
        new="commits.batch(batch, self); self.answers.take_over(first, last); self.flush_soon();"
        " self._out += self.status_frames.routed(batch) if self.status_frames else []",
        catcher=_by("client", "accepted and never stored"),
    ),
    Mutant(
        name="drop-on-full",
        at=f"{INGRESS}._refused",
        old="self._owe_refusal(first, last, batch.subject, Action.LATER, delay, error)",
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
        name="a-set-without-a-place-is-overtaken",
        at="msgservice.node.acceptance:Acceptance.decide_again",
        old="refusal: Refused | LimitReached | LogFull | None = held.get(lane)",
        new="refusal: Refused | LimitReached | LogFull | None = None",
        catcher=_test("tests/unit/test_node_membership.py -k no_place", "holds_its_lane"),
    ),
    Mutant(
        name="names-of-who-came-meanwhile-are-not-counted",
        at="msgservice.node.ingress:Ingress.stored",
        old="if batch.audience.number not in frames.named and not self._names(batch.audience):",
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
        at="msgservice.client.hop:NodeHop.pump",
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
        old="call = self._take(number)",
        new="call = self._take(min(self._calls, default=0))",
        catcher=_test("tests/unit/test_client_requests.py", "answers_in_any_order"),
    ),
    # --- the client
    Mutant(
        name="room-is-not-given-back",
        at="msgservice.client.flow:Flow.give_room",
        old="self.room_messages += messages",
        new="self.room_messages += messages - (messages > 1)",
        catcher=_by("client", "unanswered is not 0"),
    ),
    Mutant(
        name="outbox-file-forgets-what-is-not-answered",
        at="msgservice.client.outbox_file:OutboxFile.settle",
        old="for first, last in ranges:",
        new="for first, last in [(first, last + 1) for first, last in ranges]:",
        catcher=_by("client", "accepted and never stored"),
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
        at="msgservice.receiver.inbox.file:InboxFile._tell",
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
        at="msgservice.node.acceptance:_check_origin",
        old="if transfer.origin is not None:",
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
        name="settled-above-a-stuck-one-is-backlog",
        at="msgservice.log.queries:account",
        old="queued_bytes=queued_bytes(db, cursor, audiences, final)",
        new="queued_bytes=bytes_from(db, audiences, cursor)",
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
        name="held-up-senders-are-refused",
        at=f"{INGRESS}._refused",
        old="isinstance(error, LogFull | LimitReached)",
        new="isinstance(error, LogFull)",
        catcher=_test("tests/unit/test_node_ranges.py", "lanes_are_held_up"),
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
        old="if len(front) == 1 and head.first in front.by_first:\n        return []",
        new="return self._put_behind(stuck, [r for r in self._open if r.lane == lane"
        " and r.first > head.last and r.state != BEHIND])",
        catcher=_test("tests/bounds/test_reactor.py -k twice_as_many", "twice_as_many_answers"),
    ),
    Mutant(
        name="the-rest-of-a-head-stays-in-flight",
        at="msgservice.core.stuck_lanes:StuckLanes.take_back",
        old="stuck.head = head",
        new="if stuck.head is head and len(stuck.behind): return []\n    stuck.head = head",
        catcher=_by("outbox-again", "in flight is not what is unanswered", "lane order broken"),
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
        old="self._put_behind(stuck, run)",
        new="self._put_behind(stuck, run); self._enter(run, BEHIND)",
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
        old="max(1, messages // 2)",
        new="max(2, messages // 2)",
        catcher=_test("tests/unit/test_outbox.py -k dies_of", "that_its_receiver_dies_of"),
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
        at="msgservice.node.admin:Admin._call",
        old="if not local and is_reserved(subject):",
        new="if False:",
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
        old="if not is_numbered and not",
        new="if not",
        catcher=_test("tests/contract/test_session_codec.py", "reads_as_a_control_message"),
    ),
    Mutant(
        name="a-time-that-is-none",
        at="msgservice.faces.sessions.envelope:_heartbeat",
        old="if not -NUMBER_MAX <= time <= NUMBER_MAX:",
        new="if False:",
        catcher=_test("tests/unit/test_sessions_envelope.py", "time"),
    ),
]

MUTANTS = {mutant.name: mutant for mutant in _ALL}
