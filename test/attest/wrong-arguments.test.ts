/** What the library says to callers that no type checker watches: a RangeError that names the field, never a TypeError from within. */
import { describe, expect, it } from 'vitest';
import {
  decodeCertificateTable,
  type FirmwareLaunch,
  fetchEvidence,
  firmwareUpdates,
  type ImageLaunch,
  imageUpdates,
  type LaunchDigestOptions,
  launchDifference,
  launchDigest,
  parseCertificate,
  parseCrl,
  parseFirmware,
  parseReport,
  type ReportPolicy,
  readCertificates,
  reportFromHex,
  type VerifyOptions,
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
    [{ guestPolicy: 0x30000 }, 'policy.guestPolicy: got 196608, want a bigint'],
    [{ platformInfo: 1 }, 'policy.platformInfo: got 1, want a bigint'],
    [{ minimumAbi: 1 }, 'policy.minimumAbi: got 1, want 2 integers'],
    [{ minimumAbi: [1] }, 'policy.minimumAbi: got 1, want 2 integers'],
    [{ minimumFirmware: [1, 55] }, 'policy.minimumFirmware: got 1,55, want 3 integers'],
    [{ minimumFirmware: '1.55.21' }, 'policy.minimumFirmware: got 1.55.21, want 3 integers'],
    [{ minimumGuestSvn: 1.5 }, 'policy.minimumGuestSvn: got 1.5, want an integer'],
    [{ minimumTcb: 7 }, 'policy.minimumTcb: got 7, want an object'],
    [{ minimumTcb: { snp: '24' } }, 'policy.minimumTcb.snp: got 24, want an integer'],
    [{ minimumLaunchTcb: { tee: null } }, 'policy.minimumLaunchTcb.tee: got null, want an integer'],
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

describe('fetchEvidence', () => {
  it('without a report that was read', async () => {
    for (const wrong of [undefined, report])
      await expect(fetchEvidence(wrong as never)).rejects.toThrow(
        refusal('report: got something else, want what parseReport returns'),
      );
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
    ['hex as a number', () => reportFromHex(5 as unknown as string), 'text: got number, want a string'],
  ])('%s', (_what, read, message) => {
    expect(read).toThrow(refusal(message));
  });

  it.each([null, 5])('%s as a launch update', async (update) => {
    await expect(launchDigest([update as never])).rejects.toThrow(
      refusal(`updates[0]: got ${update}, want a launch update`),
    );
  });
});
