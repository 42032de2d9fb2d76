/**
 * MMU notifiers (Linux mm/mmu_notifier.c): who keeps frames of an address space (KVM in its nested tables, an IOMMU) hears
 * before they go and when they are gone. Between the two it must not take frames of that range. Left out: ageing,
 * sleepable and non-blocking variants.
 */
import type { Hva } from '../../base/address.ts';

export interface MmuNotifier {
  /** invalidate_range_start: the frames mapped at [start, end) go. */
  begin(start: Hva, end: Hva): void;
  /** invalidate_range_end: they are gone. */
  end(start: Hva, end: Hva): void;
}

export class MmuNotifiers {
  #notifiers: readonly MmuNotifier[] = [];

  register(notifier: MmuNotifier): void {
    this.#notifiers = [...this.#notifiers, notifier];
  }

  unregister(notifier: MmuNotifier): void {
    this.#notifiers = this.#notifiers.filter((other) => other !== notifier);
  }

  begin(start: Hva, end: Hva): void {
    for (const notifier of this.#notifiers) notifier.begin(start, end);
  }

  end(start: Hva, end: Hva): void {
    for (const notifier of this.#notifiers) notifier.end(start, end);
  }
}
