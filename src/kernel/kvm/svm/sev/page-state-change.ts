/**
 * The Page State Change event (Linux arch/x86/kvm/svm/sev.c, snp_begin_psc and what follows it; reference facts 5.4): a list of pages in the GHCB's shared buffer, private or
 * shared from now on. User space converts them, range by range; progress is written into the list, so that a guest may ask again where it was left.
 */
import { type Scratch, setUpScratch } from './ghcb-scratch.ts';
import { exitToMapRange, takesMapRange } from './map-range-exit.ts';
import type { VcpuSev } from './vcpu-sev.ts';

const HEADER_BYTES = 8;
const OP = { PRIVATE: 1, SHARED: 2 } as const;
const LARGE_PAGES = 512;
const INVALID_HEADER = (1n << 32n) | 1n;
const INVALID_ENTRY = (1n << 32n) | 2n;
const GENERIC = 0x100n << 32n;

/** An entry as it stands in the buffer: words of 32 bits. `gfn` has 40 bits. */
interface Entry {
  current: number;
  gfn: number;
  operation: number;
  large: boolean;
}

class Buffer {
  readonly #scratch: Scratch;

  constructor(scratch: Scratch) {
    this.#scratch = scratch;
  }

  get header(): { current: number; end: number } {
    const word = this.#scratch.load32(0);
    return { current: word & 0xffff, end: word >>> 16 };
  }
  set current(index: number) {
    this.#scratch.store32(0, (this.#scratch.load32(0) & ~0xffff) | index);
  }
  entry(index: number): Entry {
    const low = this.#scratch.load32(HEADER_BYTES + 8 * index);
    const high = this.#scratch.load32(HEADER_BYTES + 8 * index + 4);
    return {
      current: low & 0xfff,
      gfn: (low >>> 12) + (high & 0xfffff) * 0x100000,
      operation: (high >>> 20) & 0xf,
      large: (high & (1 << 24)) !== 0,
    };
  }
  complete(index: number, pages: number): void {
    const at = HEADER_BYTES + 8 * index;
    this.#scratch.store32(at, (this.#scratch.load32(at) & ~0xfff) | pages);
  }
  /** Entries that it has room for. */
  get capacity(): number {
    return Math.floor((this.#scratch.room - HEADER_BYTES) / 8);
  }
}

/** The event. A run result. */
export function changePageStates(sev: VcpuSev): number {
  const scratch = setUpScratch(sev, HEADER_BYTES, 'kept');
  return typeof scratch === 'number' ? scratch : begin(sev, new Buffer(scratch));
}

/** The list from its current entry on. A run result. */
function begin(sev: VcpuSev, buffer: Buffer): number {
  const { psc } = sev;
  const finish = (info2: bigint): number => {
    psc.inFlight = 0;
    return sev.answer(0, info2);
  };
  if (!takesMapRange(sev)) return finish(GENERIC);
  for (;;) {
    const { current, end } = buffer.header;
    if (end >= buffer.capacity) return finish(INVALID_HEADER);
    let index = current;
    let entry!: Entry;
    let gfn = 0;
    let pages = 0;
    let large = false;
    for (; index <= end; index++, buffer.current = index) {
      entry = buffer.entry(index);
      large = entry.large;
      pages = large ? LARGE_PAGES : 1;
      gfn = entry.gfn;
      if (entry.current > pages || gfn % pages !== 0) return finish(INVALID_ENTRY);
      if (entry.current > 0) {
        // What is left of a large page is worked on page by page.
        pages -= entry.current;
        gfn += entry.current;
        large = false;
      }
      if (pages > 0) break;
    }
    if (index > end) return finish(0n);
    psc.first = index;
    psc.inFlight = 1;
    for (index++; index <= end; index++) {
      const next = buffer.entry(index);
      if (next.operation !== entry.operation || next.gfn !== entry.gfn + pages) break;
      if (next.current !== 0 || next.large !== large) break;
      psc.inFlight++;
      pages += large ? LARGE_PAGES : 1;
    }
    if (entry.operation === OP.PRIVATE || entry.operation === OP.SHARED) {
      const to = entry.operation === OP.PRIVATE ? 'private' : 'shared';
      return exitToMapRange(sev, { gfn, pages, to, size: entry.large ? '2M' : '4K' }, (outcome) => {
        if (outcome === 'refused') return finish(GENERIC);
        completeInFlight(sev, buffer);
        return begin(sev, buffer);
      });
    }
    // SMASH and UNSMASH: hints that KVM does not take.
    completeInFlight(sev, buffer);
  }
}

function completeInFlight({ psc }: VcpuSev, buffer: Buffer): void {
  let index = psc.first;
  for (; psc.inFlight > 0; psc.inFlight--, index++)
    buffer.complete(index, buffer.entry(index).large ? LARGE_PAGES : 1);
  buffer.current = index;
}
