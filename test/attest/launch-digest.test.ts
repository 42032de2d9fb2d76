import { createHash } from 'node:crypto';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { type LaunchStep, type LaunchUpdate, launchDigest, resetVmsa } from '../../src/attest/index.ts';
import { LaunchDigest } from '../../src/hardware/asp/launch-digest.ts';

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');
const sha384 = (bytes: Uint8Array): Uint8Array => createHash('sha384').update(bytes).digest();
const page = (byte = 0): Uint8Array => new Uint8Array(4096).fill(byte);
const update = (type: LaunchUpdate['type'], gpa: number, bytes?: Uint8Array): LaunchUpdate => ({
  type,
  gpa,
  size: bytes?.length ?? 4096,
  label: 'test',
  ...(bytes === undefined ? {} : { bytes }),
});
const digestOf = async (...updates: LaunchUpdate[]): Promise<string> => hex(await launchDigest(updates));

describe('the launch digest', () => {
  it.each([
    [
      'normal',
      0x1000,
      'e6e4d78904d9d6b33c0cbfd121998fd2d11744dae606b3aee35e2a45d6869b60b35c63928a9232bef72d6be386f48ec6',
    ],
    [
      'zero',
      0x1000,
      '4bd4147976a1e7554c1c778a781affc1c672f1965a727ba16084989b7e356044a28bbe585a2f75dac9356fa5ab78f061',
    ],
    [
      'unmeasured',
      0x1000,
      '81475a112c0223cebe1ccb31a0aa2567772871200b33515a3cbbd5ed6a68a8e630902dd83469ea6553554bfb67111fad',
    ],
    [
      'secrets',
      0x2000,
      'db3c7f4839ea105f9898622ca76eebb484cd8dfd0cad5d0d839faf5c13eb56c226cce911ddb9adddeb5a75af277ce951',
    ],
    [
      'cpuid',
      0x3000,
      '2990ee506a85cab93731fc4d4027e828f369e3e47916ae64d2ced084ed73ffc2e598d3d3631969663234d9e2544faf9d',
    ],
    [
      'vmsa',
      0xfffffffff000,
      'f4577da9b848673216afc3909e5ea7aa80150dda441526874cd2b0282894709b46484c13a07221aefbedfff667199259',
    ],
  ] as const)('of one %s page of zeros is the known one', async (type, gpa, want) => {
    const bytes = type === 'normal' || type === 'vmsa' ? page() : undefined;
    expect(await digestOf(update(type, gpa, bytes))).toBe(want);
  });

  it('is a chain', async () => {
    expect(
      await digestOf(update('normal', 0x1000, page()), update('secrets', 0x2000), update('cpuid', 0x3000)),
    ).toBe(
      '4b5e433dacaa04cc845c698e0376dc5ab57b4cbc8cb2cbab92a4ec01a5c6912bf6c0731f0d67e9c3f3ea5262a4f11233',
    );
  });

  it('takes pages of one update one by one', async () => {
    const pages = Uint8Array.from({ length: 130 * 4096 }, (_, at) => at >> 12);
    const single = Array.from({ length: 130 }, (_, i) =>
      update('normal', 0x10000 + 4096 * i, pages.subarray(4096 * i, 4096 * (i + 1))),
    );
    expect(await digestOf(update('normal', 0x10000, pages))).toBe(await digestOf(...single));
  });

  it('goes on from a digest that was made before', async () => {
    const first = update('normal', 0x1000, page(1));
    const second = update('zero', 0x2000);
    const from = await launchDigest([first]);
    expect(hex(await launchDigest([second], { from }))).toBe(await digestOf(first, second));
  });

  it('does not look at the TSC of a VMSA', async () => {
    const vmsa = page(3);
    const other = vmsa.slice();
    other.fill(9, 0x2f0, 0x300);
    expect(await digestOf(update('vmsa', 0xfffffffff000, vmsa))).toBe(
      await digestOf(update('vmsa', 0xfffffffff000, other)),
    );
    other[0x300] = 9;
    expect(await digestOf(update('vmsa', 0xfffffffff000, vmsa))).not.toBe(
      await digestOf(update('vmsa', 0xfffffffff000, other)),
    );
  });

  it('tells each page: address, type, content, digest so far', async () => {
    const steps: LaunchStep[] = [];
    const digest = await launchDigest(
      [update('normal', 0x1000, page()), update('zero', 0x2000)],
      {},
      (step) => steps.push(step),
    );
    expect(steps.map(({ gpa, type }) => [gpa, type])).toEqual([
      [0x1000, 'normal'],
      [0x2000, 'zero'],
    ]);
    expect(steps[0]!.content).toBe(hex(sha384(page())));
    expect(steps[1]!.content).toBe('00'.repeat(48));
    expect(steps[1]!.digest).toBe(hex(digest));
  });

  it.each([
    [{ ...update('normal', 0x1000, page()), size: 100 }, 'size'],
    [update('normal', 0x1001, page()), 'address'],
    [update('normal', 0x1000), 'bytes'],
    [{ ...update('normal', 0x1000, page()), size: 8192 }, 'bytes'],
    [update('vmsa', 0, new Uint8Array(8192)), 'size'],
  ] as const)('refuses an update that cannot be (%#)', async (bad, field) => {
    await expect(launchDigest([bad])).rejects.toThrow(`test: ${field}`);
  });

  it('is what the firmware computes', async () => {
    const types = ['normal', 'zero', 'unmeasured', 'secrets', 'cpuid', 'vmsa'] as const;
    const codes = { normal: 1, vmsa: 2, zero: 3, unmeasured: 4, secrets: 5, cpuid: 6 };
    const one = fc.record({ type: fc.constantFrom(...types), gfn: fc.nat(0xffffffff), byte: fc.nat(255) });
    await fc.assert(
      fc.asyncProperty(fc.array(one, { maxLength: 12 }), async (pages) => {
        const firmware = new LaunchDigest();
        const updates = pages.map(({ type, gfn, byte }) => {
          const isMeasured = type === 'normal' || type === 'vmsa';
          const content = page(byte);
          if (type === 'vmsa') content.fill(0, 0x2f0, 0x300);
          firmware.add(isMeasured ? content : undefined, codes[type], 0, gfn * 4096);
          return update(type, gfn * 4096, isMeasured ? page(byte) : undefined);
        });
        expect(hex(await launchDigest(updates, { sha384 }))).toBe(hex(firmware.value));
      }),
      { numRuns: 60 },
    );
  });
});

describe('the VMSA at reset', () => {
  const digest = (options: Parameters<typeof resetVmsa>[0]): string => hex(sha384(resetVmsa(options)));

  it('of QEMU’s first vCPU is the known page', () => {
    const options = { vmm: 'qemu', eip: 0xfffffff0, guestFeatures: 1n, vcpuSignature: 0xa00f11 } as const;
    expect(digest(options)).toBe(
      '728af287318db5f3fc4d2357a969483c4225956dc555b514a78d64ee372112d13b3dca8afd02cdbd1c55697d8ce087f5',
    );
  });

  it('of QEMU’s other vCPUs is the known page', () => {
    const options = { vmm: 'qemu', eip: 0x80b004, guestFeatures: 1n, vcpuSignature: 0xa00f11 } as const;
    expect(digest(options)).toBe(
      '24d6d6fe1cc2fd76d9504a2e411e2a1e229a6723c94521c373c21dd97514c44895fc07fea07e04b4186d90160c8dad0b',
    );
  });

  // Attributes of CS, SS and TR, PAT, RDX, MXCSR and FCW; the first vCPU's EIP and another.
  it.each([
    ['qemu', 0xffff_fff0, [0x9b, 0x93, 0x8b], 0x0007_0406_0007_0406n, 0xa00f11n, [0x1f80, 0x37f]],
    ['ec2', 0xffff_fff0, [0x9a, 0x92, 0x83], 0x0007_0406_0007_0406n, 0x600n, [0, 0]],
    ['ec2', 0x80_b004, [0x9b, 0x92, 0x83], 0x0007_0406_0007_0406n, 0x600n, [0, 0]],
    ['gce', 0xffff_fff0, [0x9b, 0x93, 0x8b], 0x7_0106n, 0x600n, [0, 0]],
  ] as const)('of %s at 0x%x has what that VMM sets', (vmm, eip, attributes, pat, rdx, float) => {
    const page = resetVmsa({ vmm, eip, guestFeatures: 1n, vcpuSignature: 0xa00f11 });
    const view = new DataView(page.buffer, page.byteOffset);
    expect([0x12, 0x22, 0x92].map((at) => view.getUint16(at, true))).toEqual(attributes);
    expect([view.getBigUint64(0x268, true), view.getBigUint64(0x310, true)]).toEqual([pat, rdx]);
    expect([view.getUint32(0x408, true), view.getUint16(0x410, true)]).toEqual(float);
  });

  it('shows SEV_FEATURES whole', () => {
    const page = resetVmsa({ vmm: 'qemu', eip: 0, guestFeatures: 0xffff_ffff_ffff_ffffn, vcpuSignature: 0 });
    expect([...page.subarray(0x3b0, 0x3b8)]).toEqual(new Array(8).fill(0xff));
  });
});
