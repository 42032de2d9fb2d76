/**
 * What ends a KVM_RUN that would go on for ever, on the thread that waits for it: a POSIX timer whose signal goes to that thread
 * (timer_create(2), SIGEV_THREAD_ID). The thread blocks the signal, and only KVM_RUN opens its mask for it (KVM_SET_SIGNAL_MASK), so
 * no handler runs and no other system call of Node's is ever interrupted. A signal that comes while the guest is out stays pending
 * and ends the next KVM_RUN at once: none is lost.
 *
 * The signal is the real-time signal 62, which nothing in Node uses.
 */
import { failedCall, type Libc } from './libc.ts';

const SIGNAL = 62;
const SIG_BLOCK = 0;
const SIG_UNBLOCK = 1;
const CLOCK_MONOTONIC = 1;
const SIGEV_THREAD_ID = 4;

/** glibc's sigset_t; the kernel's is its first 8 bytes. */
const SIGSET_BYTES = 128;
/** `struct sigevent`: signo, notify and thread id. */
const SIGEVENT = { bytes: 64, signo: 8, notify: 12, threadId: 16 };
/** `struct itimerspec`: interval, then value; each seconds and nanoseconds. */
const ITIMERSPEC = { bytes: 32, seconds: 16, nanoseconds: 24 };

export class Timeslice {
  readonly #libc: Libc;
  readonly #milliseconds: number;
  readonly #signals = new Uint8Array(SIGSET_BYTES);
  readonly #before = new Uint8Array(SIGSET_BYTES);
  readonly #noTime = new Uint8Array(16);
  readonly #time = new Uint8Array(ITIMERSPEC.bytes);
  readonly #timer: bigint;
  /** When the timer expires or did so. */
  #expiry = 0;
  #closed = false;

  /** For the calling thread. */
  constructor(libc: Libc, milliseconds: number) {
    this.#libc = libc;
    this.#milliseconds = milliseconds;
    this.#signals[(SIGNAL - 1) >> 3] = 1 << ((SIGNAL - 1) & 7);
    const time = new DataView(this.#time.buffer);
    time.setBigInt64(ITIMERSPEC.seconds, BigInt(Math.floor(milliseconds / 1000)), true);
    time.setBigInt64(ITIMERSPEC.nanoseconds, BigInt(Math.round((milliseconds % 1000) * 1e6)), true);

    this.#mask(SIG_BLOCK, this.#before);
    const event = new Uint8Array(SIGEVENT.bytes);
    const view = new DataView(event.buffer);
    view.setInt32(SIGEVENT.signo, SIGNAL, true);
    view.setInt32(SIGEVENT.notify, SIGEV_THREAD_ID, true);
    view.setInt32(SIGEVENT.threadId, libc.call('gettid', 'gettid', []), true);
    const timer = new BigUint64Array(1);
    libc.call(
      'timer_create',
      'timer_create',
      ['int', 'void *', 'void *'],
      ...[CLOCK_MONOTONIC, event, new Uint8Array(timer.buffer)],
    );
    this.#timer = timer[0]!;
  }

  /** The kernel's mask for KVM_RUN: the thread's own, which lets the signal through. */
  get runMask(): Uint8Array {
    const mask = this.#before.slice(0, 8);
    mask[(SIGNAL - 1) >> 3]! &= ~(1 << ((SIGNAL - 1) & 7));
    return mask;
  }

  /** Before KVM_RUN: a slice begins when the last one is over. */
  begin(): void {
    const now = performance.now();
    if (now < this.#expiry) return;
    this.consume();
    this.#expiry = now + this.#milliseconds;
    this.#libc.call(
      'timer_settime',
      'timer_settime',
      ['uint64_t', 'int', 'void *', 'void *'],
      ...[this.#timer, 0, this.#time, null],
    );
  }

  /** After a KVM_RUN that was interrupted: takes the signal away and ends the slice; something else may have interrupted it. */
  consume(): void {
    const signal = this.#libc.tryCall(
      'sigtimedwait',
      ['void *', 'void *', 'void *'],
      ...[this.#signals, null, this.#noTime],
    );
    if (signal === SIGNAL) this.#expiry = 0;
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#libc.call('timer_delete', 'timer_delete', ['uint64_t'], this.#timer);
    this.consume();
    const wasBlocked = (this.#before[(SIGNAL - 1) >> 3]! & (1 << ((SIGNAL - 1) & 7))) !== 0;
    if (!wasBlocked) this.#mask(SIG_UNBLOCK, null);
  }

  /** pthread_sigmask returns its errno. */
  #mask(how: number, before: Uint8Array | null): void {
    const errno = this.#libc.tryCall(
      'pthread_sigmask',
      ['int', 'void *', 'void *'],
      ...[how, this.#signals, before],
    );
    if (errno !== 0) throw failedCall('pthread_sigmask', errno);
  }
}
