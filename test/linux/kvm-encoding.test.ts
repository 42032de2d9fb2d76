/** Offsets and sizes are those of linux/kvm.h and asm/kvm.h. */
import { describe, expect, it } from 'vitest';
import type { Segment, Sregs } from '../../src/kernel/interface.ts';
import {
  decodeCpuid,
  decodeSregs,
  encodeCpuid,
  encodeRegion,
  encodeRegion2,
  encodeSregs,
} from '../../src/linux/kvm-encoding.ts';

const viewOf = (bytes: Uint8Array): DataView => new DataView(bytes.buffer, bytes.byteOffset);
const REGION = {
  slot: 0x1_0003,
  flags: 4,
  guestPhysAddr: 0xffff_ffff_ffff_f000n,
  memorySize: 0x3000n,
  userspaceAddr: 0x7f00_0000_1000n,
};

describe('requests as KVM takes them', () => {
  it('a memory region has 32 bytes', () => {
    const view = viewOf(encodeRegion(REGION));
    expect(view.byteLength).toBe(32);
    expect([view.getUint32(0, true), view.getUint32(4, true)]).toEqual([0x1_0003, 4]);
    expect([8, 16, 24].map((at) => view.getBigUint64(at, true))).toEqual([
      0xffff_ffff_ffff_f000n,
      0x3000n,
      0x7f00_0000_1000n,
    ]);
  });

  it('a region with a guest_memfd has 160 bytes', () => {
    const view = viewOf(encodeRegion2({ ...REGION, guestMemfdOffset: 0x5000n, guestMemfd: 0xffff_ffff }));
    expect(view.byteLength).toBe(160);
    expect(view.getBigUint64(0x20, true)).toBe(0x5000n);
    expect(view.getUint32(0x28, true)).toBe(0xffff_ffff);
    expect(view.getUint32(0x2c, true)).toBe(0);
  });

  it.each([Number.NaN, 2 ** 32, -1, 1.5])(
    'a region of slot %s is refused, not taken for another slot',
    (slot) => {
      const refusal = `slot: got ${slot}, want an integer from 0 to 4294967295`;
      expect(() => encodeRegion({ ...REGION, slot })).toThrow(refusal);
      expect(() => encodeRegion2({ ...REGION, slot, guestMemfdOffset: 0n, guestMemfd: 0 })).toThrow(refusal);
    },
  );

  it('CPUID entries follow their count at 40 bytes each, padding at the end', () => {
    const entry = (leaf: number) => ({
      ...{ function: leaf, index: 1, flags: 1 },
      ...{ eax: 2, ebx: 3, ecx: 4, edx: 0xffff_ffff },
    });
    const bytes = encodeCpuid([entry(0), entry(0x8000_0008)]);
    expect(bytes.length).toBe(8 + 2 * 40);
    expect([0, 48, 52].map((at) => viewOf(bytes).getUint32(at, true))).toEqual([2, 0x8000_0008, 1]);
    expect(decodeCpuid(bytes)).toEqual([entry(0), entry(0x8000_0008)]);
  });

  it('room for CPUID entries that the kernel fills counts them', () => {
    const bytes = encodeCpuid([], 3);
    expect(bytes.length).toBe(8 + 3 * 40);
    expect(viewOf(bytes).getUint32(0, true)).toBe(3);
  });

  it('special registers come back as they went, apic_base at 0x110 and the bitmap at the end', () => {
    const segment = (selector: number): Segment => ({
      ...{ base: 0xffff_8000_0000_0000n, limit: 0xfffff, selector, type: 11, present: 1, dpl: 3 },
      ...{ db: 0, s: 1, l: 1, g: 1, avl: 0, unusable: 0 },
    });
    const sregs: Sregs = {
      ...{ cs: segment(8), ds: segment(16), es: segment(24), fs: segment(32) },
      ...{ gs: segment(40), ss: segment(48), tr: segment(56), ldt: segment(64) },
      gdt: { base: 0x1000n, limit: 0xffff },
      idt: { base: 0x2000n, limit: 0xfff },
      ...{ cr0: 1n, cr2: 2n, cr3: 3n, cr4: 4n, cr8: 5n, efer: 6n, apicBase: 0xfee0_0900n },
      interruptBitmap: [0n, 0n, 0n, 7n],
    };
    const bytes = encodeSregs(sregs);
    expect(bytes.length).toBe(0x138);
    expect(viewOf(bytes).getBigUint64(0x110, true)).toBe(0xfee0_0900n);
    expect(viewOf(bytes).getBigUint64(0x130, true)).toBe(7n);
    expect(decodeSregs(bytes)).toEqual(sregs);
  });
});
