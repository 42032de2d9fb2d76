import { describe, expect, it } from 'vitest';
import type { Hva } from '../../../src/base/address.ts';
import type { Process } from '../../../src/kernel/interface.ts';
import { VmmError } from '../../../src/vmm/error.ts';
import {
  addSnpFirmware,
  firmwareStart,
  isFirmwareName,
  loadFirmware,
  type SnpFirmwareLaunch,
} from '../../../src/vmm/loaders/firmware.ts';
import { type FirmwareImageOptions, firmwareImage } from '../../attest/firmware-image.ts';

const KiB = 1024;
const load = (options: FirmwareImageOptions = {}) =>
  loadFirmware(firmwareImage({ size: 64 * KiB, ...options }), 'x.fd');

/** Queues a launch; RAM is at address 0x10_0000_0000 of the VMM, 16 MiB of it. */
function launch(options: FirmwareImageOptions = {}, change: Partial<SnpFirmwareLaunch> = {}) {
  const written = new Map<number, Uint8Array>();
  const queue: [gpa: number, address: number, size: number, type: number][] = [];
  const memory = { write: (at: Hva, bytes: Uint8Array) => written.set(at, bytes) };
  addSnpFirmware(load(options), {
    process: { memory } as unknown as Process,
    image: 0x7000_0000 as Hva,
    ram: (gpa, size) => (gpa + size <= 0x100_0000 ? ((0x10_0000_0000 + gpa) as Hva) : undefined),
    cpuid: new Uint8Array(4096).fill(7),
    kernel: undefined,
    add: (...pages) => queue.push(pages),
    ...change,
  });
  return { queue, written };
}

describe('firmware', () => {
  it('is an image whose name says so', () => {
    expect([isFirmwareName('OVMF.fd'), isFirmwareName('x.elf'), isFirmwareName('fd')]).toEqual([
      true,
      false,
      false,
    ]);
  });

  it('ends at 4 GiB', () => {
    expect(load().address).toBe(0xffff_0000);
    expect(loadFirmware(new Uint8Array(16 * 1024 * KiB), 'x.fd').address).toBe(0xff00_0000);
  });

  it.each([0, 4096, 64 * KiB + 1, 16 * 1024 * KiB + 64 * KiB])('of %i bytes is refused', (size) => {
    expect(() => loadFirmware(new Uint8Array(size), 'x.fd')).toThrow(
      new VmmError(`x.fd: firmware: got ${size} bytes, want a multiple of 64 KiB, at most 16 MiB`),
    );
  });

  it('starts each vCPU of a plain guest at the reset vector, as x86_cpu_reset leaves it', () => {
    const start = firmwareStart(load(), 0xa00f11, 'plain');
    for (const index of [0, 1]) {
      expect(start.regs(index)).toMatchObject({ rip: 0xfff0n, rflags: 2n, rdx: 0xa00f11n, rax: 0n, rsp: 0n });
      const sregs = start.sregs(index, { apicBase: 0xfee00900n, cr8: 3n } as never);
      expect(sregs).toMatchObject({
        cs: {
          selector: 0xf000,
          base: 0xffff0000n,
          limit: 0xffff,
          type: 11,
          s: 1,
          present: 1,
          dpl: 0,
          l: 0,
          db: 0,
        },
        ss: { selector: 0, base: 0n, limit: 0xffff, type: 3, s: 1, present: 1 },
        tr: { selector: 0, limit: 0xffff, type: 11, s: 0, present: 1 },
        ldt: { selector: 0, limit: 0xffff, type: 2, s: 0, present: 1 },
        gdt: { base: 0n, limit: 0xffff },
        idt: { base: 0n, limit: 0xffff },
        cr0: 0x60000010n,
        cr3: 0n,
        cr4: 0n,
        efer: 0n,
        apicBase: 0xfee00900n,
        cr8: 3n,
      });
    }
  });

  it('starts all but the first vCPU of an SNP guest where its reset block says', () => {
    const start = firmwareStart(load({ apEip: 0x80b004 }), 0xa00f11, 'protected');
    const at = (index: number) => [start.sregs(index, {} as never).cs.base, start.regs(index).rip];
    expect([at(0), at(1), at(2)]).toEqual([
      [0xffff0000n, 0xfff0n],
      [0x800000n, 0xb004n],
      [0x800000n, 0xb004n],
    ]);
  });

  it('without a place for the other vCPUs starts no SNP guest', () => {
    const plain = loadFirmware(new Uint8Array(64 * KiB), 'x.fd');
    expect(() => firmwareStart(plain, 0, 'protected')).toThrow(
      'x.fd: SEV information block/Firmware GUID Table block not found in pflash rom',
    );
    expect(() => firmwareStart(load({ apEip: 0 }), 0, 'protected')).toThrow(
      'x.fd: SEV-ES reset address is zero',
    );
    expect(firmwareStart(plain, 0, 'plain').regs(1).rip).toBe(0xfff0n);
  });
});

describe('the launch of firmware', () => {
  it('is the image, then the sections in the order of the table', () => {
    const { queue, written } = launch();
    expect(queue).toEqual([
      [0xffff_0000, 0x7000_0000, 0x10000, 1],
      [0x800000, 0x10_0080_0000, 0x2000, 3],
      [0x803000, 0x10_0080_3000, 0x1000, 5],
      [0x804000, 0x10_0080_4000, 0x1000, 6],
      [0x805000, 0x10_0080_5000, 0x1000, 3],
    ]);
    expect([...written]).toEqual([[0x10_0080_4000, new Uint8Array(4096).fill(7)]]);
  });

  it('has zeros for a calling area of an SVSM and for what it does not know', () => {
    const { queue } = launch({
      sections: [
        [0x1000, 0x1000, 4],
        [0x3000, 0x3000, 0x77],
      ],
    });
    expect(queue.slice(1)).toEqual([
      [0x1000, 0x10_0000_1000, 0x1000, 3],
      [0x3000, 0x10_0000_3000, 0x3000, 3],
    ]);
  });

  it('with kernel-hashes has the table in their section', () => {
    const { queue, written } = launch({}, { kernel: { kernel: new Uint8Array([1]) } });
    expect(queue.at(-1)).toEqual([0x805000, 0x10_0080_5000, 0x1000, 1]);
    const page = written.get(0x10_0080_5000)!;
    expect([...page.subarray(0x0c, 0x14)]).toEqual([0, 0, 0, 0, 0x06, 0xd6, 0x38, 0x94]);
  });

  it.each<[string, FirmwareImageOptions, Partial<SnpFirmwareLaunch>, string]>([
    ['no metadata', { metadataOffset: 0x1000, signature: 'ASEV' }, {}, 'SEV metadata, signature'],
    [
      'a section outside RAM',
      { sections: [[0x100_0000, 0x1000, 1]] },
      {},
      'x.fd: SEV metadata: Failed to get HVA for GPA 0x1000000 sz 0x1000',
    ],
    [
      'two pages for CPUID',
      { sections: [[0x1000, 0x2000, 3]] },
      {},
      'x.fd: SEV metadata, CPUID section: got 8192 bytes, want 4096',
    ],
    [
      'sections that overlap',
      {
        sections: [
          [0x5000, 0x1000, 1],
          [0x1000, 0x2000, 2],
          [0x2000, 0x1000, 4],
        ],
      },
      {},
      'x.fd: SEV metadata, section 2: got 0x2000 + 0x1000, which overlaps section 1, 0x1000 + 0x2000, want each page once',
    ],
    [
      'a section that stands twice',
      {
        sections: [
          [0x1000, 0x1000, 1],
          [0x1000, 0x1000, 1],
        ],
      },
      {},
      'x.fd: SEV metadata, section 1: got 0x1000 + 0x1000, which overlaps section 0, 0x1000 + 0x1000, want each page once',
    ],
    [
      'a section that holds one before it',
      {
        sections: [
          [0x3000, 0x1000, 1],
          [0x1000, 0x8000, 1],
        ],
      },
      {},
      'x.fd: SEV metadata, section 1: got 0x1000 + 0x8000, which overlaps section 0, 0x3000 + 0x1000, want each page once',
    ],
    [
      'a section in the image',
      { sections: [[0xffff_f000, 0x1000, 1]] },
      {},
      'x.fd: SEV metadata, section 0: got 0xfffff000 + 0x1000, which overlaps the image, 0xffff0000 + 0x10000, want each page once',
    ],
    [
      'no section for the kernel',
      { sections: [[0x1000, 0x1000, 1]] },
      { kernel: { kernel: new Uint8Array(1) } },
      'x.fd: SEV metadata: got no section for kernel hashes, want one with kernel-hashes on',
    ],
    [
      'no hash table',
      { hashTableGpa: 0 },
      { kernel: { kernel: new Uint8Array(1) } },
      'SEV: guest firmware hashes table area is invalid (base=0x0 size=0x400)',
    ],
  ])('is refused with %s', (_, options, change, message) => {
    expect(() => launch(options, change)).toThrow(message);
  });

  it('needs metadata', () => {
    const plain = loadFirmware(new Uint8Array(64 * KiB), 'x.fd');
    expect(() => addSnpFirmware(plain, { kernel: undefined } as never)).toThrow(
      'x.fd: Failed to locate SEV metadata header',
    );
    expect(() => addSnpFirmware(plain, { kernel: { kernel: new Uint8Array(1) } } as never)).toThrow(
      'SEV: kernel specified but guest firmware has no hashes table GUID',
    );
  });
});
