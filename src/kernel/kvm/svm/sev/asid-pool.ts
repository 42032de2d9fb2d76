/**
 * ASIDs of encrypted guests (Linux arch/x86/kvm/svm/sev.c, sev_asid_new, sev_asid_free, __sev_recycle_asids). ASIDs below the least SEV one are for SEV-ES and SNP, the
 * others for SEV. One that was given back may be used again only after firmware flushed the data fabric, which is done when none is left.
 */
import { LinuxError } from '../../../../base/errors.ts';

export class AsidPool {
  readonly #first: number;
  readonly #last: number;
  readonly #flush: () => boolean;
  readonly #used = new Set<number>();
  readonly #reclaimed = new Set<number>();

  /** ASIDs `first` to `last`. `flush` makes those that were given back usable again; false: it failed. */
  constructor(first: number, last: number, flush: () => boolean) {
    this.#first = first;
    this.#last = last;
    this.#flush = flush;
  }

  /** Errors: ENOTTY (there are none of this kind), EBUSY (all in use). */
  take(): number {
    if (this.#first > this.#last)
      throw new LinuxError('ENOTTY', 'no ASID is set aside for guests of this kind');
    const asid = this.#free() ?? this.#recycled();
    if (asid === undefined)
      throw new LinuxError('EBUSY', `ASIDs ${this.#first} to ${this.#last} are all in use`);
    this.#used.add(asid);
    return asid;
  }

  /** The guest of the ASID is gone. */
  giveBack(asid: number): void {
    this.#reclaimed.add(asid);
  }

  #free(): number | undefined {
    for (let asid = this.#first; asid <= this.#last; asid++) if (!this.#used.has(asid)) return asid;
    return undefined;
  }

  #recycled(): number | undefined {
    if (this.#reclaimed.size === 0 || !this.#flush()) return undefined;
    for (const asid of this.#reclaimed) this.#used.delete(asid);
    this.#reclaimed.clear();
    return this.#free();
  }
}
