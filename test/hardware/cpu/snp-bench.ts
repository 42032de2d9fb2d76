/**
 * The guest of guest-bench.ts as an SNP guest: its pages are its own, validated and under its key, its registers lie in a VMSA. The guest's RAM is private but for
 * SHARED, one page that its tables map without the C-bit. Numbers are written out.
 */
import type { ChipGeneration } from '../../../src/abi/tcb-version.ts';
import type { Pfn, Spa } from '../../../src/base/address.ts';
import { Trace } from '../../../src/base/trace.ts';
import { HostMemory } from '../../../src/hardware/memory/host-memory.ts';
import type { Rmp } from '../../../src/hardware/memory/rmp.ts';
import { CODE, GuestBench, PT, RIP } from './guest-bench.ts';

export const SHARED = 0x40000;
export const ASID = 5;
export const KEY = Uint8Array.from({ length: 32 }, (_, i) => 3 * i + 1);
export const OTHER_KEY = Uint8Array.from({ length: 32 }, (_, i) => 5 * i + 2);
const C_BIT = 1n << 51n;
const PAGES = 256;

export class SnpBench extends GuestBench {
  readonly rmp: Rmp;
  readonly key: number;
  readonly vmsa: Spa;

  /** A Genoa, unless told otherwise: it has all that this core has for SNP guests. */
  constructor(chip: ChipGeneration = 'genoa') {
    super(HostMemory.create({ bytes: 24 << 20, trace: new Trace(), rmp: true }), chip);
    this.rmp = this.memory.rmp!;
    this.rmp.initialise();
    this.key = this.memory.encryption.addKey(KEY);
    this.memory.encryption.bind(ASID, this.key);
    this.vmsa = (this.frame() * 4096) as Spa;
    for (let page = 0; page < PAGES; page++)
      if (page * 4096 !== SHARED) this.write(PT + page * 8, this.read(PT + page * 8) | C_BIT);
  }

  /** The guest owns what was put together so far, RIP on CODE. */
  launch(): void {
    this.setLong(RIP, BigInt(CODE));
    const save = new Uint8Array(0x300);
    this.memory.read((this.vmcb + 0x400) as Spa, save);
    this.memory.write(this.vmsa, save);
    this.memory.store64((this.vmsa + 0x3b0) as Spa, 1n);
    this.memory.store64((this.vmsa + 0x3e8) as Spa, 1n);
    this.memory.store32((this.vmsa + 0x408) as Spa, 0x1f80);
    this.own(this.vmsa / 4096, 0xfffffffff000, { vmsa: true });
    for (let gfn = 0; gfn < PAGES; gfn++)
      if (gfn * 4096 !== SHARED) this.own(this.frameOf(gfn), gfn * 4096, { validated: true });
    this.setWord(0x58, ASID);
    this.setLong(0x90, 7n);
    this.setLong(0x108, BigInt(this.vmsa));
    // The save area of the VMCB counts no longer.
    this.memory.clear((this.vmcb + 0x400) as Spa, 0x300);
  }

  /** Gives a frame to the guest at `gpa`, in place, as firmware does. */
  own(frame: number, gpa: number, mark: { vmsa?: boolean; validated?: boolean }): void {
    this.memory.encryption.adopt(frame as Pfn, this.key);
    this.rmp.setEntry(frame as Pfn, {
      assigned: true,
      large: false,
      immutable: false,
      gpa,
      asid: ASID,
      vmsa: mark.vmsa ?? false,
      validated: mark.validated ?? false,
      permissions: 0x1f,
    });
  }

  /** What the guest has at `gpa`. */
  readPrivate(gpa: number): bigint {
    return this.#under(this.spa(gpa));
  }
  /** A field of the VMSA. */
  vmsaLong(offset: number): bigint {
    return this.#under((this.vmsa + offset) as Spa);
  }
  setVmsaLong(offset: number, value: bigint): void {
    const bytes = new Uint8Array(8);
    new DataView(bytes.buffer).setBigUint64(0, BigInt.asUintN(64, value), true);
    this.memory.encryption.writeUnder(this.key, (this.vmsa + offset) as Spa, bytes);
  }

  #under(at: Spa): bigint {
    const bytes = new Uint8Array(8);
    this.memory.encryption.readUnder(this.key, at, bytes);
    return new DataView(bytes.buffer).getBigUint64(0, true);
  }
}
