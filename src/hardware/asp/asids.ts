/**
 * What firmware knows of each ASID (AMD's firmware source: asid_dirty, asid_clean, asid_allocated, asid_in_use; all core complexes together). An ASID that a guest
 * ran with is dirty until every core has written its caches back (WBINVD) and the data fabric is flushed (DF_FLUSH); all are dirty after SNP_INIT.
 */
import { SEV_STATUS } from '../../abi/sev-status.ts';

type AsidState = 'dirty' | 'clean' | 'allocated' | 'in-use';

export class Asids {
  readonly max: number;
  readonly #states: AsidState[];
  #writtenBack = false;

  /** ASIDs 1 to `max`, all clean: a machine that just came up. */
  constructor(max: number) {
    this.max = max;
    this.#states = new Array<AsidState>(max + 1).fill('clean');
  }

  /** SNP_INIT. */
  invalidateAll(): void {
    this.#states.fill('dirty');
    this.#writtenBack = false;
  }

  /** Every core has executed WBINVD. */
  writtenBack(): void {
    this.#writtenBack = true;
  }

  /** SNP_DF_FLUSH. Returns a status. */
  flush(): number {
    if (!this.#writtenBack) return SEV_STATUS.WBINVD_REQUIRED;
    for (let asid = 1; asid <= this.max; asid++)
      if (this.#states[asid] === 'dirty') this.#states[asid] = 'clean';
    return SEV_STATUS.SUCCESS;
  }

  /** Whether no ASID is in use or waits for a flush. */
  get allClean(): boolean {
    return this.#states.every((state, asid) => asid === 0 || state === 'clean');
  }

  valid(asid: number): boolean {
    return asid >= 1 && asid <= this.max;
  }

  /** Whether a guest has it. */
  owned(asid: number): boolean {
    return this.#states[asid] === 'allocated' || this.#states[asid] === 'in-use';
  }

  /** Gives a clean ASID to a guest, which runs already or does not yet. Returns a status. */
  take(asid: number, state: 'allocated' | 'in-use'): number {
    if (this.#states[asid] === 'dirty') return SEV_STATUS.DF_FLUSH_REQUIRED;
    if (this.#states[asid] !== 'clean') return SEV_STATUS.ASID_OWNED;
    this.#states[asid] = state;
    return SEV_STATUS.SUCCESS;
  }

  /** The guest may run now. */
  use(asid: number): void {
    this.#states[asid] = 'in-use';
  }

  /** The guest is gone: the ASID is clean when it never ran, else dirty. */
  release(asid: number): void {
    this.#writtenBack = false;
    this.#states[asid] = this.#states[asid] === 'in-use' ? 'dirty' : 'clean';
  }
}
