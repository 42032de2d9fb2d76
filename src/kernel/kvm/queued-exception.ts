/**
 * The exception that waits for its guest, or is on its way into it (Linux struct kvm_queued_exception; arch/x86/kvm/x86.c: kvm_multiple_exception,
 * kvm_deliver_exception_payload).
 */
import { SAVE } from '../../abi/vmcb.ts';
import { VECTOR } from '../../abi/x86.ts';
import type { Vmcb } from './svm/vmcb.ts';

const DR6_TRAP_BITS = 0xe00fn;
const DR6_ACTIVE_LOW = 0xffff0ff0n;
/** A bit of the payload alone. */
const DR6_ENABLED_BREAKPOINT = 1n << 12n;

export class QueuedException {
  /** No entry took it yet. */
  pending = false;
  /** An entry took it, and no exit said that it was delivered. */
  injected = false;
  vector = 0;
  hasError = false;
  error = 0;
  /** Bits of DR6 for #DB, CR2 for #PF: not yet in their registers. */
  hasPayload = false;
  payload = 0n;

  /** Behind one that is still there it is a double fault. False: behind a double fault, a triple fault. */
  queue(vector: number, hasError: boolean, error: number, payload: bigint | undefined): boolean {
    let replaced = vector;
    if (this.pending || this.injected) {
      if (this.vector === VECTOR.DF) return false;
      if (makesDoubleFault(this.vector, vector)) replaced = VECTOR.DF;
    }
    this.pending = true;
    this.injected = false;
    this.vector = replaced;
    this.hasError = replaced === VECTOR.DF || hasError;
    this.error = replaced === VECTOR.DF ? 0 : error;
    this.hasPayload = payload !== undefined && replaced === vector;
    this.payload = this.hasPayload ? payload! : 0n;
    return true;
  }

  /** An exit says that its delivery was interrupted: the next entry begins it again. */
  reinject(vector: number, hasError: boolean, error: number): void {
    this.injected = true;
    this.vector = vector;
    this.hasError = hasError;
    this.error = hasError ? error : 0;
    this.hasPayload = false;
    this.payload = 0n;
  }

  clear(): void {
    this.pending = false;
    this.injected = false;
  }

  /** The payload goes to its register. */
  deliverPayload(vmcb: Vmcb, guest: { dr6: bigint }): void {
    if (!this.hasPayload) return;
    const { payload } = this;
    if (this.vector === VECTOR.DB) {
      const dr6 = (guest.dr6 & ~DR6_TRAP_BITS) | DR6_ACTIVE_LOW | payload;
      guest.dr6 = (dr6 ^ (payload & DR6_ACTIVE_LOW)) & ~DR6_ENABLED_BREAKPOINT;
    } else if (this.vector === VECTOR.PF) vmcb.setSave(SAVE.CR2, payload);
    this.hasPayload = false;
    this.payload = 0n;
  }
}

const CONTRIBUTORY = new Set<number>([VECTOR.DE, VECTOR.TS, VECTOR.NP, VECTOR.SS, VECTOR.GP]);

function makesDoubleFault(first: number, second: number): boolean {
  if (first === VECTOR.PF) return second === VECTOR.PF || CONTRIBUTORY.has(second);
  return CONTRIBUTORY.has(first) && CONTRIBUTORY.has(second);
}
