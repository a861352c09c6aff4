/**
 * An instance of the mesh in JavaScript: everything of docs/protocol.md that is not the algorithm itself.
 *
 * `serve(run)` reads the boot record, connects, takes calls, and hands each input to `run(input, context)`. What that
 * returns, or the promise it returns ends in, goes to the caller, or on to the next step of a pipeline. `context.signal`
 * is an AbortSignal: it is aborted when the caller cancels, or its time is over. To refuse an input, or to fail in
 * words of your own, throw a `Failed`. Code that computes for more than a second must let the event loop turn
 * meanwhile (`await pause()`), or run in a worker thread: an instance that is silent for three seconds is taken for dead.
 *
 * Messages are msgpack arrays, read and written here by position; the tables that name the positions are in the page.
 */

import { createPublicKey, verify } from "node:crypto";
import { closeSync, constants, fstatSync, openSync, readFileSync, statSync } from "node:fs";
import { setImmediate as nextTurn } from "node:timers/promises";
import { decode, encode } from "@msgpack/msgpack";
import { connect, headers } from "@nats-io/transport-node";

const RUNNING_AFTER_MS = 100, RUNNING_EVERY_MS = 1000;
const WAIT_FOR_SLOT_MS = 50, SHORT_RUN_MS = 5;
const GRACE_MS = 2000, DRAIN_MS = 30_000, GONE_TIMES = 3, PULL_S = 30;
const SUBJECT_FULL = 10077, NO_STREAM = 10008;
const END = -1, HEAD = -1;
const HERE = -1, NOT_JOINED = -2; // how an output comes: whole, or for who waits to go on with
const utf8 = new TextDecoder("utf-8", { fatal: true });

// Where the fields of a Call stand; what comes after them belongs to a newer mesh and is passed on as it is.
const RUN = 1, ROOT = 2, PARENT = 3, ROOT_CALLER = 4, ATTEMPT = 5, SESSION = 6, CALL = 7, TIME_LEFT_MS = 8;
const CONTENT_TYPE = 11, DETAIL = 12, PAYLOAD = 13, TRACEPARENT = 14, GRANT = 15, AT = 16, REPLY_TO = 17;
const SPENT_MS = 19, FEED = 20, WRITERS = 21;
const CALL_DEFAULTS = ["call", "", "", "", "", 1, "", "", 0, 0, 10_000, "json", "", new Uint8Array([110, 117, 108, 108]),
  "", new Uint8Array(0), -1, "", 0, 0, "", [], false];

/** Why a run failed: `code` is one of the page's, `type` a word of the algorithm's own for the kind of error. */
export class Failed extends Error {
  constructor(code, message, type = "") {
    super(message);
    this.code = code;
    this.type = type;
  }
}

/** Let the event loop turn, so that a cancel is heard and the lease goes out; to be awaited between pieces of work. */
export const pause = () => nextTurn();

/** Be one instance until SIGTERM. `load` is awaited before the first call comes. Ends the process. */
export async function serve(run, { load = async () => {} } = {}) {
  const boot = JSON.parse(readFileSync(0, "utf8"));
  const connection = await connect({
    servers: boot.nats_url, token: boot.token, name: boot.instance, inboxPrefix: `_INBOX.${boot.instance}`,
    maxReconnectAttempts: -1, reconnectTimeWait: 100, ignoreAuthErrorAbort: true, waitOnFirstConnect: true,
    noAsyncTraces: true,
  });
  const instance = new Instance(boot, connection, run);
  process.once("SIGTERM", () => instance.drain());
  process.once("SIGINT", () => instance.drain());
  instance.enter("loading");
  try {
    await load();
  } catch (error) {
    console.error(error);
    instance.enter("ended", `load_failed ${error.name}: ${error.message}`.split("\n")[0].slice(0, 1000));
    await connection.close();
    process.exit(71);
  }
  await instance.open();
}

class Instance {
  constructor(boot, connection, run) {
    const tokens = `${boot.owner}.${boot.name}.${boot.version.replaceAll(".", "-")}`;
    Object.assign(this, { boot, connection, run, tokens, caller: `${boot.owner}~${boot.name}` });
    this.stage = `${boot.owner}/${boot.name}/${boot.version}`;
    this.inbox = `_INBOX.${boot.instance}`;
    this.slots = boot.options.concurrency;
    this.jobs = new Map(); // run → job, while its code runs
    this.waiting = []; // jobs that wait for a slot, 50 ms at most
    this.group = []; // the subscriptions in the queue group, while this instance takes live calls
    this.hops = new Map(); // ticket → a hop that may come back
    this.parking = new Map(); // ticket → a call that is being parked
    this.grants = new Grants(boot.route_key);
    this.phase = "connecting";
    this.total = this.tickets = this.sliding = 0;
    this.pulling = this.draining = false;
    this.events = new Batch((rows) => this.send(`event.run.${tokens}`, ["events", rows]));
    this.sights = new Batch((rows) => this.send(`sight.${tokens}`, ["sights", rows, 1]));
  }

  // The instance's own life

  async open() {
    const { connection, inbox } = this;
    connection.subscribe(`control.${this.boot.instance}.*`, { callback: guarded((m) => this.onControl(m)) });
    connection.subscribe(`${inbox}.gone.*`, { callback: guarded((m) => this.onGone(m)) });
    connection.subscribe(`${inbox}.hop.*`, { callback: guarded((m) => this.onHopCameBack(m)) });
    connection.subscribe(`${inbox}.parked.*`, { callback: guarded((m) => this.onParkAnswer(m)) });
    connection.subscribe(`${inbox}.pull`, { callback: guarded((m) => this.onPulled(m)) });
    this.watchConnection();
    this.readyAt = performance.now();
    this.startMs = Math.max(0, Math.round(Number(process.hrtime.bigint()) / 1e6 - this.boot.launched_ns / 1e6));
    this.join();
    this.pull();
    await connection.flush();
    this.enter("ready");
    console.log(`ready after ${this.startMs} ms`);
  }

  enter(phase, failure = "") {
    this.phase = phase;
    this.lease(failure);
    clearInterval(this.leasing);
    if (phase !== "ended") this.leasing = setInterval(() => this.lease(), 1000);
  }

  lease(failure = "") {
    const late = [...this.jobs.values()].map((job) => performance.now() - job.limit - GRACE_MS);
    const overdue = Math.max(0, Math.round(Math.max(0, ...late)));
    const active = this.jobs.size + this.waiting.length;
    this.send(`lease.${this.boot.instance}`, ["lease", this.boot.instance, this.phase, active, this.total, overdue, failure]);
  }

  async drain() {
    if (this.draining) return;
    this.draining = true;
    this.enter("draining");
    const until = performance.now() + DRAIN_MS;
    await Promise.race([this.leave(), sleep(2000)]); // what was on its way has arrived by now, and was parked
    while (this.waiting.length) this.park(this.waiting.shift());
    while ((this.jobs.size || this.hops.size || this.parking.size) && performance.now() < until) await sleep(10);
    this.events.flush();
    this.sights.flush();
    this.enter("ended");
    await this.connection.flush();
    await this.connection.close();
    process.exit(0);
  }

  async watchConnection() {
    for await (const { type } of this.connection.status()) {
      if (type === "reconnect" && !this.draining) { // subscriptions are back by themselves; the pull is not
        this.pulling = false;
        this.pull();
      }
    }
  }

  // The queue group

  join() {
    const take = { queue: "workers", callback: guarded((m) => this.onCall(m)) };
    this.group = [`call.${this.tokens}.*`, `hop.${this.tokens}.*`].map((s) => this.connection.subscribe(s, take));
  }

  /** Leave the group, but hear what the server has routed here already: drain() waits for its PONG. */
  leave() {
    const leaving = this.group.map((subscription) => subscription.drain());
    this.group = [];
    return Promise.all(leaving);
  }

  // Calls arrive

  onCall(message) {
    const job = this.read(message.subject, message.data);
    if (!job) return;
    if (this.draining) this.park(job);
    else if (this.jobs.size < this.slots) this.start(job);
    else {
      this.waiting.push(job);
      if (this.sliding > SHORT_RUN_MS) this.makeRoom();
      else setTimeout(() => this.makeRoom(job), WAIT_FOR_SLOT_MS); // short runs: a slot is free in a moment
    }
  }

  /** Full: leave the group, and leave what waits to the stream, where an instance with a free slot finds it. */
  makeRoom(job = this.waiting[0]) {
    if (!this.waiting.includes(job)) return;
    this.leave();
    while (this.waiting.length) this.park(this.waiting.shift());
  }

  /** The job in a call; null for one that is not for us, of which its sender has been told where that can be proved. */
  read(subject, data, waitedMs = 0, isParked = false) {
    const given = decode(data);
    if (!Array.isArray(given) || given[0] !== "call") throw new Error("not a call");
    const call = [...given, ...CALL_DEFAULTS.slice(given.length)];
    const token = /^[A-Za-z0-9_-]{1,64}$/;
    if (!token.test(call[SESSION]) || !token.test(call[CALL])) throw new Error("its answer's subject cannot be made");
    const now = performance.now(), isHop = subject.startsWith("hop."), sender = subject.split(".").at(-1);
    const job = {
      call, subject, isParked, waitedMs, arrived: now, queuedAt: (Date.now() - waitedMs) / 1000,
      deadline: now + call[TIME_LEFT_MS] - waitedMs, caller: isHop ? call[REPLY_TO] : sender,
      id: call[AT] < 0 ? call[RUN] : `${call[RUN]}-${call[AT]}`, next: END, stages: [], gone: 0, demander: sender,
    };
    if (call[AT] >= 0 || isHop) {
      try {
        Object.assign(job, this.grants.check(call[GRANT], call[AT], sender, job.caller, this.stage));
      } catch (error) {
        if (!isHop) this.fail(job, new Failed("permission_denied", error.message));
        else console.warn(`a hop of ${sender} was refused: ${error.message}`); // to answer it would believe it
        return null;
      }
    }
    return job;
  }

  // Running

  async start(job) {
    const { call } = job, known = this.jobs.get(job.id);
    if (known) { // sent again, because its sender thought it lost: the answer goes to the newer attempt
      if (call[ATTEMPT] > known.call[ATTEMPT]) known.call = call;
      this.say(known);
      return;
    }
    const limit = this.boot.options.timeout_s, began = performance.now();
    this.total += 1;
    this.jobs.set(job.id, job);
    job.started = began;
    job.startedAt = Date.now() / 1000;
    job.limit = Math.min(job.deadline, limit === null ? Infinity : began + limit * 1000, job.stepLimit ?? Infinity);
    job.abort = new AbortController();
    if (this.jobs.size >= this.slots && this.sliding > SHORT_RUN_MS) this.leave();
    if (job.isParked) this.say(job);
    job.saying = setTimeout(() => this.sayAgain(job), RUNNING_AFTER_MS);
    job.ending = setTimeout(() => this.expire(job), Math.min(2 ** 31 - 1, Math.max(0, job.limit - began)));
    this.record(job, "running");
    let output, failure;
    try {
      if (job.limit <= began) this.expire(job); // its time was over before it began
      else output = contentOf(await this.run(await this.input(call), { signal: job.abort.signal, run: job.id }));
    } catch (error) {
      failure = error instanceof Failed ? error : new Failed("algorithm_error", `${error.name}: ${error.message}`, error.name);
      if (!(error instanceof Failed)) console.error(error);
    }
    const took = performance.now() - began;
    this.sliding = this.sliding * 0.9 + took * 0.1;
    clearTimeout(job.saying);
    clearTimeout(job.ending);
    this.jobs.delete(job.id);
    this.comeBack(); // before the answer, so that the caller's next call finds us
    if (job.isOver) { /* answered before: cancelled, or out of time */ }
    else if (failure) this.fail(job, failure, "failed", took);
    else if (output.payload.length > this.connection.info.max_payload - 4096 - call[GRANT].length) {
      this.fail(job, new Failed("payload_too_large", `the output has ${output.payload.length} bytes; return less`), "failed", took);
    } else if (job.step) this.handOver(job, output, took);
    else this.answer(job, output, took); // also before a fan-out: who waits goes on, and joins it
    this.serveNext();
  }

  /** Into the group again, when half of the slots are free. */
  comeBack() {
    const hasRoom = !this.waiting.length && this.jobs.size * 2 <= this.slots;
    if (hasRoom && !this.group.length && !this.draining) this.join();
  }

  serveNext() {
    while (this.waiting.length && this.jobs.size < this.slots) this.start(this.waiting.shift());
    this.comeBack();
    if (!this.draining && !this.pulling && this.jobs.size < this.slots) this.pull();
  }

  async input(call) {
    return await this.decoded(call[CONTENT_TYPE], call[DETAIL], call[PAYLOAD]);
  }

  /** Content as a value: text is a string, json what JSON says, binary bytes, a tensor its parts, a bundle its values. */
  async decoded(type, detail, payload) {
    try {
      switch (type) {
        case "text": return utf8.decode(payload);
        case "json": return JSON.parse(utf8.decode(payload));
        case "binary": return payload;
        case "tensor": {
          const [kind, dtype, shape] = detail.split("/");
          return { kind, dtype, shape: shape ? shape.split(",").map(Number) : [], data: payload };
        }
        case "bundle": {
          const [names, parts] = decode(payload);
          const values = await Promise.all(parts.map((part) => this.decoded(...part)));
          return names.length ? Object.fromEntries(names.map((name, index) => [name, values[index]])) : values;
        }
        case "claim": {
          const [realType, realDetail, claim] = decode(payload);
          return await this.decoded(realType, realDetail, await this.fetch(claim));
        }
      }
    } catch (error) {
      throw error instanceof Failed ? error : new Failed("bad_input", `the input is not ${type}: ${error.message}`);
    }
    throw new Failed("bad_input", `this algorithm cannot read ${type}`);
  }

  /** A payload that was too large for a message: in this machine's shared memory, or in pieces in a stream. */
  async fetch([id, size, host = "", path = "", chunks = 0]) {
    if (path) return readShared(id, size, host, path);
    const pieces = [];
    for (let number = 0; number < chunks; number++) {
      const piece = await this.connection.request(`$JS.API.DIRECT.GET.claims.claim._.${id}.${number}.chunk`, "", { timeout: 5000 });
      if (piece.headers?.code) throw new Failed("claim_gone", `the claim ${id} has expired`);
      pieces.push(piece.data);
    }
    const whole = Buffer.concat(pieces);
    if (whole.length !== size) throw new Failed("claim_gone", `the claim ${id} is not what it was`);
    return whole;
  }

  // What is said about runs

  answer(job, output, took) {
    const { call } = job, ready = job.isParked ? Math.round(performance.now() - this.readyAt) : 0;
    this.reply(job, ["result", call[RUN], call[ATTEMPT], this.boot.instance, this.boot.version, output.type, "",
      output.payload, job.started - job.arrived, call[SPENT_MS] + took, ready, 0, call[AT],
      job.next === END ? HERE : NOT_JOINED, false, call[WRITERS]]);
    this.record(job, "succeeded", took);
  }

  fail(job, failure, state = "refused", took = 0) {
    const { call } = job;
    this.reply(job, ["failure", call[RUN], call[ATTEMPT], this.boot.instance, failure.code, failure.message.slice(0, 8192),
      job.version ?? this.stage, failure.type || failure.code, call[AT], []]);
    if (!job.version) this.record(job, state, took, failure.code);
  }

  say(job) {
    const { call } = job, ready = Math.round(performance.now() - this.readyAt);
    job.hasSaid = true;
    this.reply(job, ["running", call[RUN], call[ATTEMPT], this.boot.instance, ready, this.startMs, null, "", call[AT]],
      `${this.inbox}.gone.${job.id}`);
  }

  sayAgain(job) {
    this.say(job);
    job.saying = setTimeout(() => this.sayAgain(job), RUNNING_EVERY_MS);
  }

  reply(job, message, gone) {
    const { call } = job, { owner, name } = this.boot;
    this.send(`reply.${owner}.${name}.${job.caller}.${call[SESSION]}.${call[CALL]}`, message, gone);
  }

  send(subject, message, reply) {
    this.connection.publish(subject, encode(message), reply ? { reply } : undefined);
  }

  /** For the ledger (`algomesh runs`), and for the pre-warmer, which learns from it what follows what. */
  record(job, state, took = 0, error = "") {
    const { call } = job, now = Date.now() / 1000, ended = state === "running" ? 0 : now;
    const cold = job.isParked ? Math.max(0, job.waitedMs - (performance.now() - this.readyAt)) : 0;
    this.events.add(`${job.id} ${call[ATTEMPT]}`, ["run", job.id, call[ATTEMPT], call[ROOT], call[PARENT],
      `${this.boot.owner}/${this.boot.name}`, this.boot.version, job.caller, call[ROOT_CALLER], this.boot.instance, state,
      job.queuedAt, job.startedAt ?? 0, ended, took, cold, error]);
    if (job.startedAt) {
      this.sights.add(`${job.id} ${call[ATTEMPT]}`, ["sight", job.id, call[ROOT], call[PARENT], job.caller,
        call[ROOT_CALLER], call[ATTEMPT], job.startedAt, job.started - job.arrived + cold, ended, job.stages]);
    }
  }

  // Cancel, time, callers that have gone

  onControl(message) {
    const [kind, run, attempt] = decode(message.data), caller = message.subject.split(".").at(-1);
    if (kind !== "cancel") return; // credit is for those that yield, forget for those that claim
    for (const job of this.jobs.values()) {
      if (job.call[RUN] === run && job.caller === caller && job.call[ATTEMPT] <= attempt) {
        this.giveUp(job, new Failed("cancelled", "its caller stopped it"), "cancelled");
      }
    }
  }

  onGone(message) {
    const job = this.jobs.get(message.subject.slice(`${this.inbox}.gone.`.length));
    if (job && isNobody(message) && ++job.gone >= GONE_TIMES) {
      this.giveUp(job, new Failed("cancelled", "its caller has gone"), "cancelled");
    }
  }

  expire(job) {
    const isDeadline = job.limit >= job.deadline, seconds = ((job.limit - job.started) / 1000).toPrecision(3);
    this.giveUp(job, isDeadline
      ? new Failed("deadline_exceeded", `your time was over after ${Math.max(0, seconds)} s of running; give more time`)
      : new Failed("timeout", `the run took longer than its timeout of ${Number(seconds)} s`), isDeadline ? "expired" : "failed");
  }

  /** Answer now, and ask the code to stop; its slot is free when it has. */
  giveUp(job, failure, state) {
    if (job.isOver) return;
    job.isOver = true;
    clearTimeout(job.saying);
    this.fail(job, failure, state, performance.now() - job.started);
    job.abort.abort(failure);
  }

  // Handing over to the next step of a pipeline

  handOver(job, output, took) {
    const onward = [...job.call], { step } = job;
    onward[TIME_LEFT_MS] = Math.max(1, Math.round(job.deadline - performance.now()));
    onward[CONTENT_TYPE] = output.type;
    onward[DETAIL] = "";
    onward[PAYLOAD] = output.payload;
    onward[AT] = job.next;
    onward[REPLY_TO] = job.caller;
    onward[SPENT_MS] = job.call[SPENT_MS] + took;
    onward[FEED] = "";
    const [owner, name, version] = step.version.split("/");
    const subject = `hop.${owner}.${name}.${version.replaceAll(".", "-")}.${this.caller}`;
    const ticket = `${this.inbox}.hop.${++this.tickets}`;
    this.hops.set(ticket, { ...job, call: onward, subject, version: step.version, demander: this.caller, stages: job.stages.slice(1) });
    this.send(subject, onward, ticket);
    // The server says "no responders" before it answers the flush: what has not come back by then has found somebody.
    this.confirming ??= sleep(20).then(() => {
      const sent = [...this.hops.keys()];
      this.confirming = undefined;
      return this.connection.flush().then(() => sent.forEach((each) => this.hops.delete(each)));
    }).catch(() => {});
    this.record(job, "succeeded", took);
    if (job.hasSaid) {
      this.reply(job, ["handed-over", job.call[RUN], job.call[ATTEMPT], this.boot.instance, job.next]);
    }
  }

  onHopCameBack(message) {
    const hop = this.hops.get(message.subject);
    this.hops.delete(message.subject);
    if (hop && isNobody(message)) this.park(hop);
  }

  // Parked calls

  /** Leave a call, or a hop, with the stream: it is kept there until an instance with a free slot takes it. */
  park(job) {
    const left = Math.round(job.deadline - performance.now());
    if (left <= 0) return; // who waited has given up
    const { call } = job, ticket = `${this.inbox}.parked.${++this.tickets}`, parked = headers();
    call[TIME_LEFT_MS] = left;
    parked.set("Nats-TTL", `${Math.max(1, Math.ceil(left / 1000))}s`);
    this.parking.set(ticket, job);
    this.connection.publish(`park.${job.subject}`, encode(call), { reply: ticket, headers: parked });
    const run = call[AT] < 0 ? call[RUN] : `${call[RUN]}-${call[AT]}`;
    this.send(`demand.${job.subject.split(".").slice(1, 4).join(".")}.${job.demander}`, ["demand", run, call[ROOT], call[PARENT],
      call[ROOT_CALLER], call[ATTEMPT], job.stages, call[TRACEPARENT]]);
    this.reply(job, ["parked", call[RUN], call[ATTEMPT], this.boot.instance, call[AT]]);
  }

  onParkAnswer(message) {
    const job = this.parking.get(message.subject);
    this.parking.delete(message.subject);
    const error = isNobody(message) ? { err_code: NO_STREAM } : JSON.parse(utf8.decode(message.data)).error;
    if (!job || !error) return;
    if (error.err_code === NO_STREAM) setTimeout(() => this.park(job), 100); // the server has just started
    else {
      const why = error.err_code === SUBJECT_FULL ? "1,000 of your calls wait for it already" : error.description;
      this.fail(job, new Failed("overloaded", `${why}; try again later`));
    }
  }

  /** Keep a pull open while a slot is free: the stream answers it when something is parked. */
  pull() {
    if (this.draining) return;
    this.pulling = true;
    clearTimeout(this.pullingAgain);
    this.pullingAgain = setTimeout(() => this.pull(), (PULL_S + 5) * 1000); // its answer was lost
    const consumer = this.tokens.replaceAll(".", "~");
    const wanted = JSON.stringify({ batch: 1, expires: PULL_S * 1e9 });
    this.connection.publish(`$JS.API.CONSUMER.MSG.NEXT.parked.${consumer}`, wanted, { reply: `${this.inbox}.pull` });
  }

  onPulled(message) {
    this.pulling = false;
    const status = message.headers?.code ?? 0;
    if (status) { // 408: nothing came in time. Others: the consumer is not there, or the server goes
      if (!this.draining) setTimeout(() => this.pulling || this.serveNext(), status === 408 ? 0 : 500);
      return;
    }
    // Only what was parked for this version: another one's pull may have been pointed at our inbox.
    const isOurs = ["call", "hop"].some((lane) => message.subject.startsWith(`park.${lane}.${this.tokens}.`));
    if (isOurs && !this.draining && this.jobs.size < this.slots) {
      message.respond("+ACK");
      const waitedMs = Math.max(0, Date.now() - Number(message.reply.split(".").at(-2)) / 1e6);
      const job = this.read(message.subject.slice("park.".length), message.data, waitedMs, true);
      if (job) this.start(job);
    } else if (isOurs) message.respond("-NAK");
    this.serveNext();
  }
}

/** Route tokens, verified once: what the registry allows the steps of one pipeline. */
class Grants {
  constructor(routeKey) {
    const der = Buffer.concat([Buffer.from("302a300506032b6570032100", "hex"), base32(routeKey).subarray(1, 33)]);
    this.key = createPublicKey({ key: der, format: "der", type: "spki" });
    this.known = new Map();
  }

  /** What the route says of step `at`. Throws for a token that is forged, over, or another's. */
  check(token, at, forwarder, waits, version) {
    const name = Buffer.from(token).toString("latin1"), granted = this.known.get(name) ?? this.verify(token);
    if (Date.now() / 1000 >= granted.expires) throw new Error("the route token has expired");
    if (this.known.size > 1000) this.known.clear();
    this.known.set(name, granted);
    const place = granted.places.get(at);
    if (place?.version !== version) throw new Error(`step ${at} of this route is not ${version}`);
    if (!mayAct(granted, place.forwarder, forwarder)) throw new Error(`${forwarder} does not hand over to step ${at}`);
    if (!mayAct(granted, place.joiner, waits)) throw new Error(`${waits} does not wait for step ${at}`);
    const stepLimit = place.timeoutS === null ? undefined : performance.now() + place.timeoutS * 1000;
    return { next: place.next, step: granted.places.get(place.next), stages: stagesAfter(granted, place), stepLimit };
  }

  verify(token) {
    const [claims, signature] = decode(token);
    const signed = Buffer.concat([Buffer.from("algomesh-route-token:"), claims]);
    if (!verify(null, signed, this.key, signature)) throw new Error("the registry did not sign this route token");
    const [sender, expires, route] = decode(claims);
    const [, steps] = decode(route), places = new Map();
    walk(steps, 0, HEAD, HEAD, places);
    return { sender, expires, places };
  }
}

/** Note for every call on a route who hands over to it, and who waits for its answer. */
function walk(steps, at, forwarder, joiner, places) {
  while (at !== END) {
    const [kind, what, next, timeoutS = null, , cacheS = null] = steps[at];
    if (kind === "c") {
      places.set(at, { version: what, next, timeoutS, cacheS, forwarder, joiner });
      forwarder = at;
    } else {
      for (const branch of kind === "a" ? what : [what]) walk(steps, branch, forwarder, forwarder, places);
    }
    at = next;
  }
}

/** Whether `caller` acts at this step: he is it, he sent it all, or he is before it and has found all between cached. */
function mayAct({ places, sender }, step, caller) {
  while (caller !== sender && caller !== (step === HEAD ? sender : callerOf(places.get(step).version))) {
    if (step === HEAD || !places.get(step).cacheS) return false;
    step = places.get(step).forwarder;
  }
  return true;
}

function stagesAfter({ places }, place) {
  const stages = [];
  for (let after = places.get(place.next); after; after = places.get(after.next)) stages.push(after.version);
  return stages;
}

/** Collects rows for 10 ms, the latest of each key, and sends them together. */
class Batch {
  constructor(send) {
    this.send = send;
    this.rows = new Map();
  }

  add(key, row) {
    this.rows.set(key, row);
    this.timer ??= setTimeout(() => this.flush(), 10);
  }

  flush() {
    clearTimeout(this.timer);
    this.timer = undefined;
    if (this.rows.size) this.send([...this.rows.values()]);
    this.rows.clear();
  }
}

/** What an algorithm has returned, as it travels. */
function contentOf(value) {
  if (typeof value === "string") return { type: "text", payload: Buffer.from(value.toWellFormed?.() ?? value) };
  if (value instanceof Uint8Array) return { type: "binary", payload: value };
  const json = JSON.stringify(value);
  if (json === undefined) throw new Failed("bad_output", `${typeof value} is nothing that can travel`);
  return { type: "json", payload: Buffer.from(json) };
}

/** A claim's file in /dev/shm, if it is this machine's and what it was said to be: a path in a message is not believed. */
function readShared(id, size, host, path) {
  const memory = statSync("/dev/shm", { bigint: true }), started = readFileSync("/proc/sys/kernel/random/boot_id", "utf8");
  const [, machine, uid] = /^(.*)\.(\d+)$/.exec(host) ?? [];
  if (machine !== `${started.trim()}.${memory.dev.toString(16)}-${memory.ino.toString(16)}`) {
    throw new Failed("claim_gone", `the claim ${id} lies in the memory of another machine`);
  }
  if (!new RegExp(`^/dev/shm/algomesh-${uid}/[0-9a-f]{32}-[0-9a-f]{1,12}$`).test(path)) throw new Failed("claim_gone", "this is no claim's path");
  let file;
  try {
    file = openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
    const facts = fstatSync(file);
    if (!facts.isFile() || facts.size !== size || (facts.mode & 0o777) !== 0o444) throw new Error("it is something else");
    return readFileSync(file);
  } catch (error) {
    throw new Failed("claim_gone", `the claim ${id} cannot be read: ${error.message}`);
  } finally {
    if (file !== undefined) closeSync(file);
  }
}

const sleep = (ms) => new Promise((wake) => setTimeout(wake, ms));
const isNobody = (message) => message.headers?.code === 503;
const callerOf = (version) => version.split("/", 2).join("~");

/** A callback that survives whatever a message holds. */
function guarded(handle) {
  return (error, message) => {
    try {
      if (error) console.warn(`${error.name}: ${error.message}`);
      else handle(message);
    } catch (problem) {
      console.warn(`a message on ${message.subject} was ignored: ${problem.message}`);
    }
  };
}

function base32(text) {
  let bits = 0, value = 0;
  const bytes = [];
  for (const letter of text) {
    value = (value << 5) | "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567".indexOf(letter);
    bits += 5;
    if (bits >= 8) {
      bits -= 8;
      bytes.push((value >>> bits) & 255);
      value &= (1 << bits) - 1;
    }
  }
  return Buffer.from(bytes);
}
