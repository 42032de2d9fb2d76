import { createHash } from 'node:crypto';
import { describe, expect, it } from 'vitest';
import { firmwareUpdates, launchDifference, parseFirmware, vcpuSignature } from '../../src/attest/index.ts';
import { isFirmware } from '../../src/attest/ovmf.ts';
import { guidBytes } from '../../src/base/guid.ts';
import { firmwareImage, SECTIONS } from './firmware-image.ts';

const launch = (image: Uint8Array, more: Partial<Parameters<typeof firmwareUpdates>[0]> = {}) =>
  firmwareUpdates({ firmware: parseFirmware(image), vcpus: 1, vcpuSignature: 0xa00f11, ...more });
const shape = async (...args: Parameters<typeof launch>): Promise<unknown[]> =>
  (await launch(...args)).map(({ type, gpa, size }) => [type, gpa, size]);

describe('a firmware image', () => {
  it('says its sections, its place, and where its other vCPUs start', () => {
    const firmware = parseFirmware(firmwareImage());
    expect(firmware.gpa).toBe(0xffffe000);
    expect(firmware.apEip).toBe(0x80b004);
    expect(firmware.hashTableGpa).toBe(0x805010);
    expect(firmware.sections).toEqual(SECTIONS.map(([gpa, size, type]) => ({ gpa, size, type })));
  });

  it('counts of entries with one GUID the one nearest to the end, as QEMU does', () => {
    const image = firmwareImage();
    const guid = guidBytes('7255371f-3a3b-4b04-927b-1da6efa8d454');
    const at = Buffer.from(image).indexOf(guid);
    image.set(guidBytes('00f771de-1a7e-4fcb-890e-68c77e2fb44e'), at);
    expect(parseFirmware(image)).toMatchObject({ apEip: 0x80b004, hashTableGpa: undefined });
  });

  it('without a table has no sections', () => {
    expect(parseFirmware(new Uint8Array(4096))).toMatchObject({
      sections: [],
      apEip: undefined,
      hashTableGpa: undefined,
    });
  });

  it('may be 2 GiB, have a table that is a footer alone, metadata and sections up to the end', () => {
    expect(parseFirmware(new Uint8Array(2 ** 31)).gpa).toBe(0x8000_0000);
    expect(parseFirmware(changed(-50, 18, 0))).toMatchObject({ sections: [], apEip: undefined });
    expect(parseFirmware(changed(-112, 22, 0)).hashTableGpa).toBe(0x400);
    expect(parseFirmware(firmwareImage({ metadataLength: 0x400 })).sections).toHaveLength(4);
    const { sections } = parseFirmware(firmwareImage({ sections: [[0xfffff000, 0x1000, 1]] }));
    expect(sections).toEqual([{ gpa: 0xfffff000, size: 0x1000, type: 1 }]);
  });

  it('is told by its footer', () => {
    expect(isFirmware(image)).toBe(true);
    expect(isFirmware(image.subarray(-50))).toBe(true);
    expect(isFirmware(image.subarray(-49))).toBe(false);
    expect(isFirmware(image.subarray(0, -1))).toBe(false);
  });

  const image = firmwareImage();
  const changed = (at: number, ...bytes: number[]): Uint8Array => {
    const copy = image.slice();
    copy.set(bytes, copy.length + at);
    return copy;
  };
  it.each([
    ['no bytes', new Uint8Array(0), 'got 0 bytes, want a multiple of 4096'],
    ['half a page', new Uint8Array(2048), 'got 2048 bytes, want a multiple of 4096'],
    ['a table longer than the image', changed(-50, 0xff, 0xff), 'GUIDed table, length: got 65535'],
    ['a table shorter than its footer', changed(-50, 17, 0), 'GUIDed table, length: got 17'],
    [
      'an entry shorter than its head',
      changed(-68, 17, 0),
      'dc886566-984a-4798-a75e-5585a7bf67cc, length: got 17',
    ],
    [
      'an entry longer than the table',
      changed(-68, 0xff, 0),
      'dc886566-984a-4798-a75e-5585a7bf67cc, length: got 255',
    ],
    [
      'an entry without room for its number',
      changed(-112, 18, 0),
      'SEV hash table entry: got 0 bytes, want at least 4',
    ],
    ['an entry of three bytes', changed(-112, 21, 0), 'SEV hash table entry: got 3 bytes, want at least 4'],
    [
      'more than 2 GiB',
      new Uint8Array(2 ** 31 + 4096),
      'got 2147487744 bytes, want a multiple of 4096 up to 2 GiB',
    ],
    ['metadata whose head alone fits', firmwareImage({ metadataOffset: 16 }), 'SEV metadata, signature: got'],
    ['metadata outside of it', firmwareImage({ metadataOffset: 0x2001 }), 'SEV metadata, offset: got 8193'],
    ['metadata at its end', firmwareImage({ metadataOffset: 8 }), 'SEV metadata, offset: got 8'],
    [
      'metadata of another signature',
      firmwareImage({ signature: 'ASEW' }),
      'SEV metadata, signature: got 0x57455341, want "ASEV"',
    ],
    ['metadata of another version', firmwareImage({ version: 2 }), 'SEV metadata, version: got 2, want 1'],
    [
      'metadata that is too short',
      firmwareImage({ metadataLength: 63 }),
      'SEV metadata, length: got 63, want room for 4',
    ],
    ['metadata that is too long', firmwareImage({ metadataLength: 0x401 }), 'SEV metadata, length: got 1025'],
    [
      'a section that is no whole page',
      firmwareImage({ sections: [[0x1000, 0x800, 1]] }),
      'section 0: got 0x1000 + 0x800',
    ],
    [
      'a section off a page',
      firmwareImage({ sections: [[0x1001, 0x1000, 1]] }),
      'section 0: got 0x1001 + 0x1000',
    ],
    ['a section without pages', firmwareImage({ sections: [[0x1000, 0, 1]] }), 'section 0: got 0x1000 + 0x0'],
    [
      'a section beyond 4 GiB',
      firmwareImage({ sections: [[0xfffff000, 0x2000, 1]] }),
      'section 0: got 0xfffff000 + 0x2000',
    ],
  ])('with %s is refused by name', (_what, bad, message) => {
    expect(() => parseFirmware(bad)).toThrow(message);
  });
});

describe('the launch of a firmware image', () => {
  it('adds the image, its sections in order, a VMSA per vCPU', async () => {
    expect(await shape(firmwareImage(), { vcpus: 2 })).toEqual([
      ['normal', 0xffffe000, 0x2000],
      ['zero', 0x800000, 0x2000],
      ['secrets', 0x803000, 0x1000],
      ['cpuid', 0x804000, 0x1000],
      ['zero', 0x805000, 0x1000],
      ['vmsa', 0xfffffffff000, 0x1000],
      ['vmsa', 0xfffffffff000, 0x1000],
    ]);
  });

  it('on EC2 adds the CPUID page last, before the VMSAs', async () => {
    const types = (await shape(firmwareImage(), { vmm: 'ec2' })).map((row) => (row as unknown[])[0]);
    expect(types).toEqual(['normal', 'zero', 'secrets', 'zero', 'cpuid', 'vmsa']);
  });

  it('on GCE does not measure SEC memory', async () => {
    const types = (await shape(firmwareImage(), { vmm: 'gce' })).map((row) => (row as unknown[])[0]);
    expect(types).toEqual(['normal', 'unmeasured', 'secrets', 'cpuid', 'zero', 'vmsa']);
  });

  it('takes an unknown section for zeros with QEMU, and refuses it elsewhere', async () => {
    const image = firmwareImage({
      sections: [
        [0x1000, 0x1000, 9],
        [0x2000, 0x1000, 4],
      ],
    });
    expect((await shape(image)).slice(1, 3)).toEqual([
      ['zero', 0x1000, 0x1000],
      ['zero', 0x2000, 0x1000],
    ]);
    await expect(launch(image, { vmm: 'gce' })).rejects.toThrow('section at 0x1000: got type 9');
  });

  it('measures kernel, initial RAM disk and command line in a table of hashes', async () => {
    const sha256 = (text: string): string => createHash('sha256').update(text).digest('hex');
    const kernel = { kernel: Buffer.from('kernel'), initrd: Buffer.from('initrd'), append: 'quiet' };
    const page = (await launch(firmwareImage(), { kernel })).find(({ gpa }) => gpa === 0x805000)!;
    expect(page.type).toBe('normal');
    const hex = Buffer.from(page.bytes!).toString('hex');
    expect(hex.slice(0, 32)).toBe('00'.repeat(16));
    expect(hex.slice(32, 68)).toBe('06d63894224fc94cb479a793d411fd21a800');
    expect(hex.slice(68, 168)).toBe(`d82dd09720bd944caa78e7714d36ab2a3200${sha256('quiet\0')}`);
    expect(hex).toContain(sha256('initrd'));
    expect(hex).toContain(sha256('kernel'));
    expect(page.bytes!.subarray(0x10 + 168)).toEqual(new Uint8Array(4096 - 0x10 - 168));
  });

  it('hashes an absent command line as one NUL, and an absent disk as nothing', async () => {
    const page = (await launch(firmwareImage(), { kernel: { kernel: Buffer.from('k') } })).find(
      ({ gpa }) => gpa === 0x805000,
    )!;
    const hex = Buffer.from(page.bytes!).toString('hex');
    expect(hex).toContain('6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d');
    expect(hex).toContain('e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855');
  });

  it('takes a table that ends with its page, filled up to 176 bytes', async () => {
    const image = firmwareImage({ hashTableGpa: 0x805f50 });
    const page = (await launch(image, { kernel: { kernel: Buffer.from('k') } })).find(
      ({ gpa }) => gpa === 0x805000,
    )!;
    expect(Buffer.from(page.bytes!.subarray(0xf50, 0xf62)).toString('hex')).toBe(
      '06d63894224fc94cb479a793d411fd21a800',
    );
  });

  it.each([
    ['no section for kernel hashes', firmwareImage({ sections: [] }), 'section for kernel hashes'],
    ['no place for the table', firmwareImage({ hashTableGpa: 0 }), 'SEV hash table entry: got none'],
    [
      'a place too near the page’s end',
      firmwareImage({ hashTableGpa: 0x805f51 }),
      'kernel hashes: got offset 3921',
    ],
    [
      'two pages for it',
      firmwareImage({ sections: [[0x805000, 0x2000, 0x10]] }),
      'kernel hashes: got 8192 bytes',
    ],
  ])('with a kernel, refuses %s', async (_what, image, message) => {
    await expect(launch(image, { kernel: { kernel: new Uint8Array(1) } })).rejects.toThrow(message);
  });

  it.each<[what: string, sections: [number, number, number][], message: string]>([
    [
      'overlap',
      [
        [0x5000, 0x1000, 1],
        [0x1000, 0x2000, 2],
        [0x2000, 0x1000, 4],
      ],
      'section 2: got 0x2000 + 0x1000, which overlaps section 1, 0x1000 + 0x2000, want each page once',
    ],
    [
      'stand twice',
      [
        [0x1000, 0x1000, 1],
        [0x1000, 0x1000, 1],
      ],
      'section 1: got 0x1000 + 0x1000, which overlaps section 0, 0x1000 + 0x1000, want each page once',
    ],
    [
      'hold another that comes before',
      [
        [0x3000, 0x1000, 1],
        [0x1000, 0x8000, 1],
      ],
      'section 1: got 0x1000 + 0x8000, which overlaps section 0, 0x3000 + 0x1000, want each page once',
    ],
    [
      'reach into the image',
      [[0xffff_d000, 0x2000, 1]],
      'section 0: got 0xffffd000 + 0x2000, which overlaps the image, 0xffffe000 + 0x2000, want each page once',
    ],
    [
      'are 4 GiB, five times',
      Array.from({ length: 5 }, () => [0, 0xffff_f000, 1]),
      'section 1: got 0x0 + 0xfffff000, which overlaps section 0',
    ],
    ['are two pages for CPUID', [[0x1000, 0x2000, 3]], 'CPUID section: got 8192 bytes, want 4096'],
  ])('refuses sections that %s', async (_what, sections, message) => {
    for (const vmm of ['qemu', 'ec2', 'gce'] as const)
      await expect(launch(firmwareImage({ sections }), { vmm })).rejects.toThrow(`SEV metadata, ${message}`);
  });

  it('takes sections that touch', async () => {
    const sections = [
      [0xffff_d000, 0x1000, 1],
      [0x2000, 0x1000, 1],
      [0x1000, 0x1000, 1],
    ] as const;
    expect(await shape(firmwareImage({ sections }))).toHaveLength(5);
  });

  it('adds each page of secrets with QEMU, as that does', async () => {
    const image = firmwareImage({ sections: [[0x1000, 0x2000, 2]] });
    expect((await shape(image))[1]).toEqual(['secrets', 0x1000, 0x2000]);
    for (const vmm of ['ec2', 'gce'] as const)
      expect((await shape(image, { vmm }))[1]).toEqual(['secrets', 0x1000, 0x1000]);
  });

  it('starts the first vCPU at the reset vector, and the others where the firmware says', async () => {
    const vmsas = (await launch(firmwareImage(), { vcpus: 3 })).slice(-3);
    const start = vmsas.map(({ bytes }) => {
      const view = new DataView(bytes!.buffer);
      return [view.getBigUint64(0x18, true), view.getBigUint64(0x178, true)];
    });
    const others = [0x80_0000n, 0xb004n];
    expect(start).toEqual([[0xffff_0000n, 0xfff0n], others, others]);
  });

  it('needs to know where more vCPUs start', async () => {
    await expect(launch(firmwareImage({ apEip: 0 }), { vcpus: 2 })).rejects.toThrow(
      'SEV-ES reset block: got 0',
    );
    expect(await shape(firmwareImage({ apEip: 0 }))).toHaveLength(6);
  });
});

describe('two launches', () => {
  const image = firmwareImage();

  it('that are the same do not differ', async () => {
    expect(launchDifference(await launch(image), await launch(image))).toBeUndefined();
  });

  it('differ at a byte of the image', async () => {
    const other = image.slice();
    other[0x1234] = 0xff;
    expect(launchDifference(await launch(image), await launch(other))).toMatchObject({
      page: 1,
      what: 'bytes from 0x234 of the page',
      first: { type: 'normal', gpa: 0xfffff000, label: 'firmware' },
      got: expect.stringMatching(/^6c/),
      want: expect.stringMatching(/^ff/),
    });
  });

  it('differ in a field of a VMSA', async () => {
    expect(
      launchDifference(await launch(image), await launch(image, { vcpuSignature: 0xa10f10 })),
    ).toMatchObject({
      page: 7,
      what: 'VMSA field rdx',
      got: '0x0000000000a00f11',
      want: '0x0000000000a10f10',
    });
    expect(
      launchDifference(await launch(image), await launch(image, { guestFeatures: 0x21n })),
    ).toMatchObject({
      what: 'VMSA field sev_features',
      got: '0x0000000000000001',
      want: '0x0000000000000021',
    });
  });

  it('differ at a byte of a VMSA that is no field', async () => {
    const [first, second] = [await launch(image), await launch(image)];
    second.at(-1)!.bytes![0xff0] = 1;
    expect(launchDifference(first, second)).toMatchObject({ page: 7, what: 'bytes from 0xff0 of the page' });
    second.at(-1)!.bytes![0xcc] = 1;
    expect(launchDifference(first, second)).toMatchObject({ page: 7, what: 'bytes from 0xcc of the page' });
  });

  it('differ in number, type or address of pages', async () => {
    expect(launchDifference(await launch(image), await launch(image, { vcpus: 2 }))).toMatchObject({
      page: 8,
      what: 'page',
      first: undefined,
      got: 'no page',
    });
    expect(launchDifference(await launch(image, { vcpus: 2 }), await launch(image))).toMatchObject({
      page: 8,
      want: 'no page',
    });
    expect(launchDifference(await launch(image), await launch(image, { vmm: 'gce' }))).toMatchObject({
      page: 2,
      what: 'type',
      got: 'zero',
      want: 'unmeasured',
    });
    const moved = firmwareImage({ sections: [[0x900000, 0x2000, 1], ...SECTIONS.slice(1)] });
    const sections = (await launch(image)).slice(1);
    expect(launchDifference(sections, (await launch(moved)).slice(1))).toMatchObject({
      page: 0,
      what: 'address',
      got: '0x800000',
      want: '0x900000',
    });
  });
});

describe('vCPU signatures', () => {
  it.each([
    [25, 1, 1, 0xa00f11],
    [25, 17, 0, 0xa10f10],
    [23, 49, 0, 0x830f10],
    [23, 1, 2, 0x800f12],
    [26, 0, 0, 0xb00f00],
    [6, 0x9e, 3, 0x906e3],
    [15, 2, 1, 0xf21],
    [270, 0, 0, 0xff00f00],
  ])('of family %i, model %i, stepping %i', (family, model, stepping, signature) => {
    expect(vcpuSignature(family, model, stepping)).toBe(signature);
  });
});
