/** What the library says to callers that no type checker watches: a RangeError that names the field, never a TypeError from within. */
import { describe, expect, it } from 'vitest';
import {
  decodeCertificateTable,
  describeReport,
  type FirmwareLaunch,
  fetchEvidence,
  firmwareUpdates,
  type ImageLaunch,
  imageUpdate,
  imageUpdates,
  isElfImage,
  isFirmware,
  type KdsOptions,
  type LaunchDigestOptions,
  launchDifference,
  launchDigest,
  parseCertificate,
  parseCrl,
  parseFirmware,
  parseReport,
  printedEvidence,
  type ReportPolicy,
  readCertificates,
  reportFromHex,
  resetVmsa,
  sectionUpdates,
  type VerifyOptions,
  vcpuSignature,
  verifyReport,
} from '../../src/attest/index.ts';
import { evidenceOf } from './evidence.ts';
import { firmwareImage } from './firmware-image.ts';

const { report, options } = await evidenceOf('milan');
const refusal = (message: string): RangeError => new RangeError(message);

describe('verifyReport', () => {
  it.each<[what: string, more: object | undefined, message: string]>([
    ['no options', undefined, 'options: got undefined, want an object'],
    ['no certificates', {}, 'options.certificates: got undefined, want an array of Uint8Arrays'],
    [
      'one certificate by itself',
      { ...options, certificates: options.certificates[0] },
      'options.certificates: got object, want an array of Uint8Arrays',
    ],
    [
      'a certificate as text',
      { ...options, certificates: [options.certificates[0], 'PEM'] },
      'options.certificates[1]: got string, want a Uint8Array',
    ],
    ['no roots', { certificates: [] }, 'options.roots: got undefined, want an array of Uint8Arrays'],
    ['a root as text', { ...options, roots: ['PEM'] }, 'options.roots[0]: got string, want a Uint8Array'],
    ['a list that is none', { ...options, crls: [7] }, 'options.crls[0]: got number, want a Uint8Array'],
    ['a time as text', { ...options, at: '2026-06-01' }, 'options.at: got 2026-06-01, want a valid Date'],
    ['no time', { ...options, at: new Date('noon') }, 'options.at: got Invalid Date, want a valid Date'],
    ['a number as time', { ...options, obtainedAt: 5 }, 'options.obtainedAt: got 5, want a valid Date'],
    ['no policy', { ...options, policy: null }, 'policy: got null, want an object'],
    ['an array as policy', { ...options, policy: [] }, 'policy: got an array, want an object'],
    ['an array as options', [], 'options: got an array, want an object'],
  ])('with %s', async (_what, more, message) => {
    await expect(verifyReport(report, more as VerifyOptions)).rejects.toThrow(refusal(message));
  });

  it('without a report', async () => {
    const bytes = undefined as unknown as Uint8Array;
    await expect(verifyReport(bytes, options)).rejects.toThrow(
      refusal('report: got undefined, want a Uint8Array'),
    );
  });

  it.each<[policy: object, message: string]>([
    [{ measurement: 5 }, 'policy.measurement: got 5, want a Uint8Array or hex, or an array of them'],
    [{ measurement: [5] }, 'policy.measurement: got 5, want a Uint8Array or hex, or an array of them'],
    [{ hostData: ['00'] }, 'policy.hostData: got 00, want a Uint8Array or hex'],
    [{ vmpl: '0' }, 'policy.vmpl: got 0, want 0 to 3'],
    [{ allow: 5 }, 'policy.allow: got 5, want an array'],
    [{ demand: 'single-socket' }, 'policy.demand: got single-socket, want an array'],
    [
      { measurement: [] },
      'policy.measurement: got an empty array, want a Uint8Array or hex, or an array of them',
    ],
    [{ chipId: [] }, 'policy.chipId: got an empty array, want a Uint8Array or hex, or an array of them'],
    [{ guestPolicy: 0x30000 }, 'policy.guestPolicy: got 196608, want a bigint of 64 bits'],
    [{ guestPolicy: -1n }, 'policy.guestPolicy: got -1, want a bigint of 64 bits'],
    [{ guestPolicy: 1n << 64n }, 'policy.guestPolicy: got 18446744073709551616, want a bigint of 64 bits'],
    [{ platformInfo: 1 }, 'policy.platformInfo: got 1, want a bigint of 64 bits'],
    [{ platformInfo: -1n }, 'policy.platformInfo: got -1, want a bigint of 64 bits'],
    [{ platformInfo: 1n << 64n }, 'policy.platformInfo: got 18446744073709551616, want a bigint of 64 bits'],
    [{ minimumAbi: 1 }, 'policy.minimumAbi: got 1, want 2 integers from 0 to 255'],
    [{ minimumAbi: [1] }, 'policy.minimumAbi: got 1, want 2 integers from 0 to 255'],
    [{ minimumAbi: [1, 256] }, 'policy.minimumAbi: got 1,256, want 2 integers from 0 to 255'],
    [{ minimumFirmware: [1, 55] }, 'policy.minimumFirmware: got 1,55, want 3 integers from 0 to 255'],
    [{ minimumFirmware: [1, -55, 0] }, 'policy.minimumFirmware: got 1,-55,0, want 3 integers from 0 to 255'],
    [{ minimumFirmware: '1.55.21' }, 'policy.minimumFirmware: got 1.55.21, want 3 integers from 0 to 255'],
    [{ minimumGuestSvn: 1.5 }, 'policy.minimumGuestSvn: got 1.5, want an integer from 0 to 4294967295'],
    [{ minimumGuestSvn: -1 }, 'policy.minimumGuestSvn: got -1, want an integer from 0 to 4294967295'],
    [
      { minimumGuestSvn: 2 ** 32 },
      'policy.minimumGuestSvn: got 4294967296, want an integer from 0 to 4294967295',
    ],
    [{ minimumTcb: 7 }, 'policy.minimumTcb: got 7, want an object'],
    [{ minimumTcb: [] }, 'policy.minimumTcb: got an empty array, want an object'],
    [{ minimumTcb: { snp: '24' } }, 'policy.minimumTcb.snp: got 24, want an integer from 0 to 255'],
    [{ minimumTcb: { snp: 256 } }, 'policy.minimumTcb.snp: got 256, want an integer from 0 to 255'],
    [{ minimumTcb: { snp: -1 } }, 'policy.minimumTcb.snp: got -1, want an integer from 0 to 255'],
    [
      { minimumLaunchTcb: { tee: null } },
      'policy.minimumLaunchTcb.tee: got null, want an integer from 0 to 255',
    ],
    [{ maximumAge: '60' }, 'policy.maximumAge: got 60, want a number from 0'],
    [{ maximumAge: Number.NaN }, 'policy.maximumAge: got NaN, want a number from 0'],
  ])('with the policy %o', async (policy, message) => {
    const wrong = verifyReport(report, { ...options, policy: policy as ReportPolicy });
    await expect(wrong).rejects.toThrow(refusal(message));
  });
});

describe('a parser', () => {
  it.each<[name: string, parse: (bytes: Uint8Array) => unknown]>([
    ['report', parseReport],
    ['certificate', parseCertificate],
    ['certificates', readCertificates],
    ['CRL', parseCrl],
    ['firmware', parseFirmware],
  ])('of a %s gets nothing, or text', (name, parse) => {
    expect(() => parse(undefined as never)).toThrow(refusal(`${name}: got undefined, want a Uint8Array`));
    expect(() => parse('30' as never)).toThrow(refusal(`${name}: got string, want a Uint8Array`));
    expect(() => parse([0x30] as never)).toThrow(refusal(`${name}: got object, want a Uint8Array`));
  });
});

/** What nobody's parser returned. */
const NOTHING_READ = [undefined, null, 5, 'x', {}, [], Number.NaN, 1n, report, { signingKey: 'VCEK' }];

describe('what wants a report that was read', () => {
  const message = 'report: got something else, want what parseReport returns';
  it.each(NOTHING_READ)('does not take %s', async (wrong) => {
    await expect(fetchEvidence(wrong as never)).rejects.toThrow(refusal(message));
    expect(() => describeReport(wrong as never)).toThrow(refusal(message));
  });

  it.each([5, null, 'milan', {}, ''])('describes none of product %o', (product) => {
    const text = product === '' ? '""' : String(product);
    expect(() => describeReport(parseReport(report), product as never)).toThrow(
      refusal(`product: got ${text}, want Milan or Genoa or Turin`),
    );
  });

  it.each<[more: object, message: string]>([
    [{ url: 5 }, 'url: got 5, want a string'],
    [{ url: Symbol('s') }, 'url: got Symbol(s), want a string'],
    [{ fetch: {} }, 'fetch: got [object Object], want a function'],
    [{ fetch: () => 7 }, 'fetch: got a function that resolves to 7, want one that resolves to a Response'],
    [{ timeoutMs: '5' }, 'timeoutMs: got 5, want an integer from 0 to 2147483647'],
  ])('asks no server with %o', async (more, message) => {
    await expect(fetchEvidence(parseReport(report), more as KdsOptions)).rejects.toThrow(refusal(message));
  });
});

describe('what wants a firmware image that was read', () => {
  const message = 'firmware: got something else, want what parseFirmware returns';
  it.each([...NOTHING_READ, { sections: [] }])('does not take %s', async (wrong) => {
    expect(() => imageUpdate(wrong as never)).toThrow(refusal(message));
    const launch = { firmware: wrong as never, vcpus: 1, vcpuSignature: 0 };
    await expect(firmwareUpdates(launch)).rejects.toThrow(refusal(message));
    await expect(sectionUpdates(launch)).rejects.toThrow(refusal(message));
  });
});

describe('a kind of image', () => {
  it.each([undefined, null, 5, 'ELF', {}, []])('is not told of %o', (wrong) => {
    expect(() => isElfImage(wrong as never)).toThrow(/^image: got \w+, want a Uint8Array$/);
    expect(() => isFirmware(wrong as never)).toThrow(/^image: got \w+, want a Uint8Array$/);
  });
});

describe('a VMSA', () => {
  const vmsa = { vmm: 'qemu', eip: 0xffff_fff0, guestFeatures: 1n, vcpuSignature: 0xa00f11 };
  it.each<[wrong: unknown, message: string]>([
    [undefined, 'vmsa: got undefined, want an object'],
    [{ ...vmsa, vmm: 'QEMU' }, 'vmm: got QEMU, want qemu or ec2 or gce'],
    [{ ...vmsa, vmm: undefined }, 'vmm: got undefined, want qemu or ec2 or gce'],
    [{ ...vmsa, eip: 1n }, 'eip: got 1, want an integer from 0 to 4294967295'],
    [{ ...vmsa, eip: 2 ** 32 }, 'eip: got 4294967296, want an integer from 0 to 4294967295'],
    [{ ...vmsa, guestFeatures: 1 }, 'guestFeatures: got 1, want a bigint of 64 bits'],
    [{ ...vmsa, guestFeatures: undefined }, 'guestFeatures: got undefined, want a bigint of 64 bits'],
    [{ ...vmsa, vcpuSignature: '5' }, 'vcpuSignature: got 5, want an integer from 0 to 4294967295'],
    [{ ...vmsa, rip: 1 }, 'vmsa.rip: got a field that is none, want vmm, eip, guestFeatures, vcpuSignature'],
  ])('is not made of %o', (wrong, message) => {
    expect(() => resetVmsa(wrong as never)).toThrow(refusal(message));
  });

  it.each<[numbers: unknown[], message: string]>([
    [['25', 1, 1], 'family: got 25, want an integer from 0 to 270'],
    [[271, 1, 1], 'family: got 271, want an integer from 0 to 270'],
    [[25, -1, 1], 'model: got -1, want an integer from 0 to 255'],
    [[25, 256, 1], 'model: got 256, want an integer from 0 to 255'],
    [[25, 1], 'stepping: got undefined, want an integer from 0 to 15'],
    [[25, 1, 16], 'stepping: got 16, want an integer from 0 to 15'],
  ])('has no signature of %o', (numbers, message) => {
    expect(() => vcpuSignature(...(numbers as [number, number, number]))).toThrow(refusal(message));
  });
});

describe('a launch', () => {
  const flat = { image: new Uint8Array(1), format: 'flat', vcpus: 1 } as const;
  it.each<[launch: object, message: string]>([
    [{ vcpus: undefined }, 'vcpus: got undefined, want an integer from 1 to 4096'],
    [{ vcpus: -1 }, 'vcpus: got -1, want an integer from 1 to 4096'],
    [{ vcpus: 0 }, 'vcpus: got 0, want an integer from 1 to 4096'],
    [{ vcpus: 1.5 }, 'vcpus: got 1.5, want an integer from 1 to 4096'],
    [{ image: 'ELF' }, 'image: got string, want a Uint8Array'],
    [{ format: 'elf' }, 'format: got elf, want ELF or flat'],
    [{ guestFeatures: 1 }, 'guestFeatures: got 1, want a bigint of 64 bits'],
    [{ guestFeatures: -1n }, 'guestFeatures: got -1, want a bigint of 64 bits'],
    [{ guestFeatures: 1n << 64n }, 'guestFeatures: got 18446744073709551616, want a bigint of 64 bits'],
    [{ vcpus: 4097 }, 'vcpus: got 4097, want an integer from 1 to 4096'],
    [{ smp: 2 }, 'launch.smp: got a field that is none, want image, format, vcpus, guestFeatures'],
  ])('of an image with %o', (more, message) => {
    expect(() => imageUpdates({ ...flat, ...more } as ImageLaunch)).toThrow(refusal(message));
  });

  const firmware = { firmware: parseFirmware(firmwareImage()), vcpus: 1, vcpuSignature: 0xa00f11 };
  it.each<[launch: object, message: string]>([
    [{ vcpus: undefined }, 'vcpus: got undefined, want an integer from 1 to 4096'],
    [{ vcpus: -1 }, 'vcpus: got -1, want an integer from 1 to 4096'],
    [{ vcpuSignature: undefined }, 'vcpuSignature: got undefined, want an integer from 0 to 4294967295'],
    [{ vcpuSignature: 2 ** 32 }, 'vcpuSignature: got 4294967296, want an integer from 0 to 4294967295'],
    [{ firmware: undefined }, 'firmware: got something else, want what parseFirmware returns'],
    [{ firmware: firmwareImage() }, 'firmware: got something else, want what parseFirmware returns'],
    [{ guestFeatures: 1 }, 'guestFeatures: got 1, want a bigint of 64 bits'],
    [{ guestFeatures: -1n }, 'guestFeatures: got -1, want a bigint of 64 bits'],
    [{ guestFeatures: 1n << 64n }, 'guestFeatures: got 18446744073709551616, want a bigint of 64 bits'],
    [{ vcpus: 4097 }, 'vcpus: got 4097, want an integer from 1 to 4096'],
    [{ vmm: 'QEMU' }, 'vmm: got QEMU, want qemu or ec2 or gce'],
    [{ kernel: 'vmlinuz' }, 'kernel: got vmlinuz, want an object'],
    [{ kernel: { kernel: 'vmlinuz' } }, 'kernel.kernel: got string, want a Uint8Array'],
    [
      { kernel: { kernel: new Uint8Array(1), initrd: 'disk' } },
      'kernel.initrd: got string, want a Uint8Array',
    ],
    [{ kernel: { kernel: new Uint8Array(1), append: 7 } }, 'kernel.append: got 7, want a string'],
    [
      { kernel: { kernel: new Uint8Array(1), cmdline: '' } },
      'kernel.cmdline: got a field that is none, want kernel, initrd, append',
    ],
    [
      { vcpuType: 'EPYC' },
      'launch.vcpuType: got a field that is none, want firmware, vcpus, vcpuSignature, guestFeatures, vmm, kernel',
    ],
  ])('of firmware with %#: %o', async (more, message) => {
    const launch = { ...firmware, ...more } as FirmwareLaunch;
    await expect(firmwareUpdates(launch)).rejects.toThrow(refusal(message));
  });

  it('without pages', async () => {
    const message = 'updates: got undefined, want an array of launch updates';
    await expect(launchDigest(undefined as never)).rejects.toThrow(refusal(message));
    expect(() => launchDifference(undefined as never, [])).toThrow(refusal(`first ${message}`));
    expect(() => launchDifference([], undefined as never)).toThrow(refusal(`second ${message}`));
  });

  it.each<[more: object, message: string]>([
    [{ from: new Uint8Array(47) }, 'from: got 47 bytes, want 48'],
    [{ from: 'ab' }, 'from: got string, want a Uint8Array'],
    [{ sha384: 'sha384' }, 'sha384: got sha384, want a function'],
    [{ digest: 1 }, 'options.digest: got a field that is none, want sha384, from'],
  ])('that is digested with %o', async (more, message) => {
    await expect(launchDigest([], more as LaunchDigestOptions)).rejects.toThrow(refusal(message));
  });
});

describe('what is read', () => {
  it.each<[what: string, read: () => unknown, message: string]>([
    [
      'a table as text',
      () => decodeCertificateTable('x' as unknown as Uint8Array),
      'certificate table: got string, want a Uint8Array',
    ],
    ['hex as a number', () => reportFromHex(5 as unknown as string), 'text: got 5, want a string'],
  ])('%s', (_what, read, message) => {
    expect(read).toThrow(refusal(message));
  });

  it.each([undefined, null, 5, {}, 1n])('no console: %o', (console) => {
    expect(() => printedEvidence(console as never)).toThrow(
      refusal(`console: got ${console}, want a string`),
    );
  });
});

describe('a launch update', () => {
  const good = { type: 'normal', gpa: 4096, size: 4096, bytes: new Uint8Array(4096), label: 'image' };
  it.each<[update: unknown, message: string]>([
    [null, 'updates[0]: got null, want an object'],
    [5, 'updates[0]: got 5, want an object'],
    [[], 'updates[0]: got an array, want an object'],
    [{}, 'updates[0].label: got undefined, want a string'],
    [{ ...good, label: 7 }, 'updates[0].label: got 7, want a string'],
    [{ ...good, pages: 1 }, 'updates[0].pages: got a field that is none, want type, gpa, size, bytes, label'],
    [
      { ...good, type: 'boot' },
      'image: type: got boot, want normal or vmsa or zero or unmeasured or secrets or cpuid',
    ],
    [{ ...good, gpa: 4096n }, 'image: address: got the bigint 4096, want a multiple of 4096'],
    [{ ...good, gpa: null }, 'image: address: got null, want a multiple of 4096'],
    [{ ...good, gpa: 1 }, 'image: address: got 0x1, want a multiple of 4096'],
    [{ ...good, gpa: -4096 }, 'image: address: got -0x1000, want a multiple of 4096'],
    [{ ...good, gpa: 2 ** 53 }, 'image: address: got 0x20000000000000, want a multiple of 4096'],
    [{ ...good, size: undefined }, 'image: size: got undefined, want whole pages of 4096 bytes'],
    [{ ...good, size: 0 }, 'image: size: got 0x0, want whole pages of 4096 bytes'],
    [{ ...good, size: 4096n }, 'image: size: got the bigint 4096, want whole pages of 4096 bytes'],
    [{ ...good, bytes: undefined }, 'image: bytes: got none, want 4096'],
    [{ ...good, bytes: new Uint8Array(5) }, 'image: bytes: got 5, want 4096'],
    [{ ...good, bytes: { length: 4096 } }, 'image: bytes: got object, want a Uint8Array'],
    [{ ...good, type: 'zero', bytes: 5 }, 'image: bytes: got number, want a Uint8Array'],
  ])('is not %o', async (update, message) => {
    await expect(launchDigest([update as never])).rejects.toThrow(refusal(message));
    const ofFirst = message.replace(/^updates/, 'first updates');
    expect(() => launchDifference([update as never], [])).toThrow(refusal(ofFirst));
    const ofSecond = message.replace(/^updates/, 'second updates');
    expect(() => launchDifference([], [update as never])).toThrow(refusal(ofSecond));
  });

  it.each([null, 5, {}, 'x'])('is not told to %o', async (onStep) => {
    await expect(launchDigest([], {}, onStep as never)).rejects.toThrow(
      refusal(`onStep: got ${onStep}, want a function`),
    );
  });
});
