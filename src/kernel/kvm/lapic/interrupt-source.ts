/**
 * What a vCPU's processor is offered to take: user space's external interrupt (its PIC, by KVM_INTERRUPT) before the local APIC's (Linux
 * arch/x86/kvm/irq.c: kvm_cpu_has_injectable_intr, kvm_cpu_get_interrupt, kvm_cpu_has_extint).
 */
import { LinuxError } from '../../../base/errors.ts';
import type { InterruptSource } from '../event-injection.ts';
import type { Lapic } from './lapic.ts';

export class LapicInterruptSource implements InterruptSource {
  readonly #lapic: Lapic;
  /** pending_external_vector; −1: none. */
  #external = -1;

  constructor(lapic: Lapic) {
    this.#lapic = lapic;
  }

  #hasExternal(): boolean {
    return this.#external >= 0 && this.#lapic.acceptsExternal;
  }

  get pending(): boolean {
    return this.#hasExternal() || this.#lapic.pendingVector() >= 0;
  }

  acknowledge(): number {
    if (this.#hasExternal()) {
      const vector = this.#external;
      this.#external = -1;
      return vector;
    }
    const vector = this.#lapic.pendingVector();
    if (vector >= 0) this.#lapic.acknowledge(vector);
    return vector;
  }

  get acceptsUserInterrupt(): boolean {
    return !this.#hasExternal() && this.#lapic.acceptsExternal;
  }

  /** KVM_INTERRUPT with a split irqchip. Errors: EEXIST while one waits. */
  queueExternal(vector: number): void {
    if (this.#external >= 0)
      throw new LinuxError('EEXIST', `KVM_INTERRUPT: vector ${this.#external} still waits`);
    this.#external = vector;
  }
}
