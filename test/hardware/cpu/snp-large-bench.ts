/** The SNP guest of snp-bench.ts with 2 MiB behind its RAM, which its tables, the nested ones and the RMP have in pages of 2 MiB or of 4 KiB, each as it is told. */
import type { ChipGeneration } from '../../../src/abi/tcb-version.ts';
import type { Pfn, Spa } from '../../../src/base/address.ts';
import { DATA, PD } from './guest-bench.ts';
import { ASID, SnpBench } from './snp-bench.ts';

const C_BIT = 1n << 51n;
/** Linear and guest physical. */
export const LARGE = 0x40_0000;
/** A page of RAM that becomes a page table. */
const OTHER_PT = 0x50000;

export type Size = 'large' | 'small';

export class SnpLargeBench extends SnpBench {
  /** 512 frames in a row. */
  readonly region: Pfn;
  constructor(chip?: ChipGeneration) {
    super(chip);
    this.region = this.memory.allocate(9, this.memory.owner('large')) as Pfn;
  }

  /** Maps LARGE, each layer in the size that it is given; all are the guest's, validated. Before `launch`. */
  mapRegion(guest: Size, nested: Size, table: Size): void {
    if (guest === 'large') this.write(PD + 16, BigInt(LARGE) | 0x83n | C_BIT);
    else {
      this.write(PD + 16, BigInt(OTHER_PT) | 3n | C_BIT);
      for (let i = 0; i < 512; i++) this.write(OTHER_PT + i * 8, BigInt(LARGE + i * 4096) | 3n | C_BIT);
    }
    for (let i = 0; i < 512; i++) this.map(LARGE / 4096 + i, this.region + i, 7n);
    if (nested === 'large') {
      const leaves = Math.floor(this.nestedLeaf(LARGE / 4096) / 4096);
      const entry = this.#nestedEntryOf(leaves);
      this.memory.store64(entry, BigInt(this.region * 4096) | 0x87n);
    }
    this.setRegion(table, {});
  }

  setRegion(table: Size, over: object): void {
    const entry = {
      assigned: true,
      large: table === 'large',
      immutable: false,
      gpa: LARGE,
      asid: ASID,
      vmsa: false,
      validated: true,
      permissions: 0x1f,
      ...over,
    };
    if (table === 'large') this.rmp.setEntry(this.region, entry);
    else
      for (let i = 0; i < 512; i++)
        this.rmp.setEntry((this.region + i) as Pfn, { ...entry, gpa: entry.gpa + i * 4096 });
  }

  /** The entry of the level above that points to a table of nested leaves. */
  #nestedEntryOf(leaves: number): Spa {
    let table = this.nestedRoot;
    for (let level = 3; level > 1; level--)
      table = Number((this.memory.load64((table * 4096) as Spa) >> 12n) & 0xfffffffffn);
    const slot = Array.from({ length: 512 }, (_, i) => (table * 4096 + i * 8) as Spa);
    return slot.find((at) => Number((this.memory.load64(at) >> 12n) & 0xfffffffffn) === leaves)!;
  }

  change(over: object, gpa = DATA): void {
    const frame = this.frameOf(gpa >>> 12);
    this.rmp.setEntry(frame, { ...this.rmp.entry(frame), ...over });
  }

  /** The guest is at that VMPL, and may do everything there. After `launch`. */
  atVmpl(vmpl: number): void {
    this.memory.encryption.writeUnder(this.key, (this.vmsa + 0xca) as Spa, Uint8Array.of(vmpl));
    for (let gfn = 0; gfn < 256; gfn++)
      if (this.rmp.assigned(this.frameOf(gfn))) this.change({ permissions: 0x1f1f1f1f }, gfn * 4096);
  }
  get permissions(): number {
    return this.rmp.entry(this.frameOf(DATA >>> 12)).permissions >>> 0;
  }
}
