/**
 * SHA-384 of pages on several threads, as the processor has engines for it beside its core: the hash of one page does not depend on another's. Pages lie in a ring of
 * shared memory in the order in which they came. Lanes, threads that do nothing else, hash what waits there; whoever asks does it too, where they do not keep up.
 *
 * A slot of the ring is free, WAITING (its page is there), TAKEN (somebody hashes it) or DONE (its digest is there).
 */
import * as crypto from 'node:crypto';
import { availableParallelism } from 'node:os';
import { Worker } from 'node:worker_threads';
import { PAGE_SIZE } from '../../base/address.ts';

const SLOTS = 256;
/** So many pages that wait keep lanes busy. */
const ENOUGH = 64;
/** For so many a lane is woken: that takes as long as the hash of a page. */
const WORTH_WAKING = 16;
/** More lanes than these would wait for whoever brings the pages. */
const MOST_LANES = 2;
const DIGEST_SIZE = 48;

/** Of the shared memory. Words: pages that came so far (wraps), lanes that run, lanes that sleep, and a state a slot. */
const LAYOUT = {
  ...{ CAME: 0, RUNNING: 1, ASLEEP: 2, STATES: 4 },
  ...{ WAITING: 1, TAKEN: 2, DONE: 3 },
  DIGESTS: (4 + SLOTS) * 4,
  PAGES: 4 * PAGE_SIZE,
  SLOTS,
} as const;

export const RING_BYTES = LAYOUT.PAGES + SLOTS * PAGE_SIZE;

/** SHA-384 as a string of 48 characters, a byte each: the platform's fastest form, where it has one-shot hashes. */
export const digestOf = (bytes: Uint8Array): string =>
  typeof crypto.hash === 'function'
    ? crypto.hash('sha384', bytes, 'binary')
    : crypto.createHash('sha384').update(bytes).digest('binary');

/** What a page is beside its content. */
class Label {
  type = 0;
  permissions = 0;
  gpa = 0;
}

/** Whose pages are in the ring, and who takes them out when somebody else wants it. */
export interface PageOwner {
  settle(): void;
}

export class PageHashes {
  /** The process's. */
  static #shared: PageHashes | undefined;
  static #lanes = -1;

  /**
   * The ring, for the pages of `owner`: whoever had it takes out what is in it. The first call starts the lanes; undefined until one runs, and for ever where there
   * is but one processor.
   */
  static of(owner: PageOwner): PageHashes | undefined {
    if (PageHashes.#lanes < 0) {
      PageHashes.#lanes = Math.min(availableParallelism() - 1, MOST_LANES);
      if (PageHashes.#lanes > 0) PageHashes.#shared = new PageHashes(PageHashes.#lanes);
    }
    const shared = PageHashes.#shared;
    if (shared === undefined || shared.lanes === 0) return undefined;
    if (shared.#owner !== owner) {
      shared.#owner?.settle();
      shared.#owner = owner;
    }
    return shared;
  }

  /** The ring, where it has pages of `owner`. */
  static heldBy(owner: PageOwner): PageHashes | undefined {
    const shared = PageHashes.#shared;
    return shared !== undefined && shared.#owner === owner && shared.length > 0 ? shared : undefined;
  }

  readonly #words: Int32Array;
  readonly #bytes: Buffer;
  readonly #labels = Array.from({ length: SLOTS }, () => new Label());
  #owner: PageOwner | undefined;
  /** Pages that came and that were taken out; they wrap. */
  #came = 0;
  #out = 0;

  /** With so many lanes, which start. `shared`: where the ring lies, all zero. */
  constructor(lanes: number, shared = new SharedArrayBuffer(RING_BYTES)) {
    this.#words = new Int32Array(shared, 0, LAYOUT.DIGESTS / 4);
    this.#bytes = Buffer.from(shared);
    for (let i = 0; i < lanes; i++) startLane(shared);
  }

  /** Lanes that run by now: starting takes some 30 ms. */
  get lanes(): number {
    return Atomics.load(this.#words, LAYOUT.RUNNING);
  }

  /** Pages that are in the ring. */
  get length(): number {
    return (this.#came - this.#out) | 0;
  }

  get isFull(): boolean {
    return this.length === SLOTS;
  }

  /** Whether `takeOut` need not wait. */
  get isReady(): boolean {
    return this.length > 0 && this.#state(this.#out) === LAYOUT.DONE;
  }

  /** Brings a page of 4 KiB into the ring, which is not full. */
  bring(page: Uint8Array, type: number, permissions: number, gpa: number): void {
    const words = this.#words;
    const slot = this.#came & (SLOTS - 1);
    const label = this.#labels[slot]!;
    label.type = type;
    label.permissions = permissions;
    label.gpa = gpa;
    const enough = this.#isWaiting(ENOUGH);
    if (enough) this.#put(slot, digestOf(page));
    else {
      this.#bytes.set(page, LAYOUT.PAGES + slot * PAGE_SIZE);
      Atomics.store(words, LAYOUT.STATES + slot, LAYOUT.WAITING);
    }
    this.#came = (this.#came + 1) | 0;
    Atomics.store(words, LAYOUT.CAME, this.#came);
    if (Atomics.load(words, LAYOUT.ASLEEP) > 0 && this.#isWaiting(WORTH_WAKING))
      Atomics.notify(words, LAYOUT.CAME);
  }

  /** Takes the oldest page out: `into` gets its digest, 48 bytes, at `at`. Returns what came with it. */
  takeOut(into: Uint8Array, at: number): Readonly<Label> {
    const words = this.#words;
    const slot = this.#out & (SLOTS - 1);
    const state = LAYOUT.STATES + slot;
    while (!this.#hash(slot) && Atomics.load(words, state) !== LAYOUT.DONE)
      if (!this.#hashNewest()) Atomics.wait(words, state, LAYOUT.TAKEN);
    const digest = LAYOUT.DIGESTS + slot * DIGEST_SIZE;
    for (let i = 0; i < DIGEST_SIZE; i++) into[at + i] = this.#bytes[digest + i]!;
    this.#out = (this.#out + 1) | 0;
    return this.#labels[slot]!;
  }

  /** Hashes the page of a slot, if it waits. */
  #hash(slot: number): boolean {
    const { WAITING, TAKEN, STATES, PAGES } = LAYOUT;
    if (Atomics.compareExchange(this.#words, STATES + slot, WAITING, TAKEN) !== WAITING) return false;
    const page = PAGES + slot * PAGE_SIZE;
    this.#put(slot, digestOf(this.#bytes.subarray(page, page + PAGE_SIZE)));
    return true;
  }

  /** Hashes one of the pages that came last, which lanes, who begin with the first, would get to last: they may be long about a page where processors are busy. */
  #hashNewest(): boolean {
    for (let back = 1; back <= this.length; back++)
      if (this.#hash((this.#came - back) & (SLOTS - 1))) return true;
    return false;
  }

  /** Whether so many pages wait, or more: lanes take the oldest first. */
  #isWaiting(pages: number): boolean {
    return this.length >= pages && this.#state(this.#came - pages) === LAYOUT.WAITING;
  }

  /** State of the page that came as number `page`. */
  #state(page: number): number {
    return Atomics.load(this.#words, LAYOUT.STATES + (page & (SLOTS - 1)));
  }

  #put(slot: number, digest: string): void {
    this.#bytes.write(digest, LAYOUT.DIGESTS + slot * DIGEST_SIZE, DIGEST_SIZE, 'latin1');
    Atomics.store(this.#words, LAYOUT.STATES + slot, LAYOUT.DONE);
  }
}

/** Keeps no process alive. One that cannot start is missed by nobody: `lanes` does not count it. */
function startLane(shared: SharedArrayBuffer): void {
  const script = `(${lane})(require('node:crypto'), require('node:worker_threads').workerData)`;
  try {
    const worker = new Worker(script, { eval: true, execArgv: [], workerData: { shared, layout: LAYOUT } });
    worker.on('error', () => {});
    worker.unref();
  } catch {
    // Node's permission model forbids threads.
  }
}

/**
 * What a lane runs: its text becomes a script of its own, so nothing of this file is in its reach, nor what a bundler would give names to functions with. A page that it
 * cannot hash it leaves to others, and ends.
 */
function lane(
  { createHash, hash }: typeof crypto,
  { shared, layout }: { shared: SharedArrayBuffer; layout: typeof LAYOUT },
): void {
  const { CAME, RUNNING, ASLEEP, STATES, WAITING, TAKEN, DONE, DIGESTS, PAGES, SLOTS: slots } = layout;
  const words = new Int32Array(shared, 0, DIGESTS / 4);
  const bytes = Buffer.from(shared);
  let state = STATES;
  let next = Atomics.load(words, CAME);
  Atomics.add(words, RUNNING, 1);
  try {
    for (;;) {
      Atomics.add(words, ASLEEP, 1);
      Atomics.wait(words, CAME, next);
      Atomics.sub(words, ASLEEP, 1);
      for (const end = Atomics.load(words, CAME); next !== end; next = (next + 1) | 0) {
        const slot = next & (slots - 1);
        state = STATES + slot;
        if (Atomics.compareExchange(words, state, WAITING, TAKEN) !== WAITING) continue;
        const page = bytes.subarray(PAGES + slot * 4096, PAGES + (slot + 1) * 4096);
        const digest =
          typeof hash === 'function'
            ? hash('sha384', page, 'binary')
            : createHash('sha384').update(page).digest('binary');
        bytes.write(digest, DIGESTS + slot * 48, 48, 'latin1');
        Atomics.store(words, state, DONE);
        Atomics.notify(words, state);
      }
    }
  } finally {
    Atomics.sub(words, RUNNING, 1);
    Atomics.compareExchange(words, state, TAKEN, WAITING);
    Atomics.notify(words, state);
  }
}
