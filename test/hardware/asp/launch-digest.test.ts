import { describe, expect, it } from 'vitest';
import { LaunchDigest, sha384 } from '../../../src/hardware/asp/launch-digest.ts';
import { hex } from './machine.ts';

/** Page types of the SNP ABI. */
const [NORMAL, VMSA, ZERO, UNMEASURED, SECRETS, CPUID] = [1, 2, 3, 4, 5, 6];
const zeroPage = new Uint8Array(4096);

const chain = (...pages: readonly (readonly [type: number, gpa: number, content?: Uint8Array])[]): string => {
  const digest = new LaunchDigest();
  for (const [type, gpa, content] of pages) {
    digest.add(content, type, 0, gpa);
  }
  return hex(digest.value);
};

describe('the launch digest', () => {
  it.each([
    [
      'NORMAL, all zero',
      [[NORMAL, 0x1000, zeroPage]],
      'e6e4d78904d9d6b33c0cbfd121998fd2d11744dae606b3aee35e2a45d6869b60b35c63928a9232bef72d6be386f48ec6',
    ],
    [
      'ZERO',
      [[ZERO, 0x1000]],
      '4bd4147976a1e7554c1c778a781affc1c672f1965a727ba16084989b7e356044a28bbe585a2f75dac9356fa5ab78f061',
    ],
    [
      'UNMEASURED',
      [[UNMEASURED, 0x1000]],
      '81475a112c0223cebe1ccb31a0aa2567772871200b33515a3cbbd5ed6a68a8e630902dd83469ea6553554bfb67111fad',
    ],
    [
      'SECRETS',
      [[SECRETS, 0x2000]],
      'db3c7f4839ea105f9898622ca76eebb484cd8dfd0cad5d0d839faf5c13eb56c226cce911ddb9adddeb5a75af277ce951',
    ],
    [
      'CPUID',
      [[CPUID, 0x3000]],
      '2990ee506a85cab93731fc4d4027e828f369e3e47916ae64d2ced084ed73ffc2e598d3d3631969663234d9e2544faf9d',
    ],
    [
      'NORMAL, SECRETS, CPUID',
      [
        [NORMAL, 0x1000, zeroPage],
        [SECRETS, 0x2000],
        [CPUID, 0x3000],
      ],
      '4b5e433dacaa04cc845c698e0376dc5ab57b4cbc8cb2cbab92a4ec01a5c6912bf6c0731f0d67e9c3f3ea5262a4f11233',
    ],
    [
      'VMSA, all zero',
      [[VMSA, 0xfffffffff000, zeroPage]],
      'f4577da9b848673216afc3909e5ea7aa80150dda441526874cd2b0282894709b46484c13a07221aefbedfff667199259',
    ],
  ] as [string, [number, number, Uint8Array?][], string][])(
    'of %s is that of sev-snp-measure',
    (_title, pages, want) => {
      expect(chain(...pages)).toBe(want);
    },
  );

  it('hashes a VMSA of QEMU as it should', () => {
    const vmsa = new Uint8Array(4096);
    const view = new DataView(vmsa.buffer);
    const segment = (at: number, attrib: number, selector = 0, base = 0) => {
      view.setUint16(at, selector, true);
      view.setUint16(at + 2, attrib, true);
      view.setUint32(at + 4, 0xffff, true);
      view.setUint32(at + 8, base, true);
    };
    for (const at of [0x00, 0x20, 0x30, 0x40, 0x50]) segment(at, 0x93);
    segment(0x10, 0x9b, 0xf000, 0xffff0000);
    segment(0x60, 0);
    segment(0x80, 0);
    segment(0x70, 0x82);
    segment(0x90, 0x8b);
    for (const [at, value] of [
      [0xd0, 0x1000],
      [0x148, 0x40],
      [0x158, 0x10],
      [0x160, 0x400],
      [0x168, 0xffff0ff0],
      [0x170, 2],
      [0x178, 0xfff0],
      [0x310, 0xa00f11],
      [0x3b0, 1],
      [0x3e8, 1],
      [0x408, 0x1f80],
      [0x410, 0x37f],
    ] as const)
      view.setUint32(at, value, true);
    view.setBigUint64(0x268, 0x0007040600070406n, true);
    expect(hex(sha384(vmsa))).toBe(
      '728af287318db5f3fc4d2357a969483c4225956dc555b514a78d64ee372112d13b3dca8afd02cdbd1c55697d8ce087f5',
    );
  });

  it.each([
    ['type', [NORMAL, 0, 0x1000], [ZERO, 0, 0x1000]],
    ['migration image', [NORMAL, 0, 0x1000], [NORMAL | 0x100, 0, 0x1000]],
    ['permissions of VMPL1', [NORMAL, 0, 0x1000], [NORMAL, 0x100, 0x1000]],
    ['permissions of VMPL3', [NORMAL, 0, 0x1000], [NORMAL, 0x1000000, 0x1000]],
    ['GPA above 4 GiB', [NORMAL, 0, 0x1000], [NORMAL, 0, 0x1_0000_1000]],
  ] as const)('changes with the %s', (_title, a, b) => {
    const of = ([type, permissions, gpa]: readonly [number, number, number]): string => {
      const digest = new LaunchDigest();
      digest.add(undefined, type, permissions, gpa);
      return hex(digest.value);
    };
    expect(of(a)).not.toBe(of(b));
  });
});
