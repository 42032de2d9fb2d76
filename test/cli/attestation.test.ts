/** The commands of attestation, as functions. */
import { mkdtempSync, readFileSync, rmSync, utimesSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { encodeCertificateTable } from '../../src/abi/certificate-table.ts';
import { writePem } from '../../src/abi/pem.ts';
import { decodeCertificateTable, parseCertificate, readCertificates } from '../../src/attest/index.ts';
import { KeyServer } from '../../src/authority/kds.ts';
import { type CertsCommandOptions, certs } from '../../src/cli/certs.ts';
import { kds } from '../../src/cli/kds.ts';
import { type MeasureCommandOptions, measure } from '../../src/cli/measure.ts';
import { showReport } from '../../src/cli/report.ts';
import { type VerifyCommandOptions, verify } from '../../src/cli/verify.ts';
import { evidenceOf, signedReport } from '../attest/evidence.ts';
import { firmwareImage } from '../attest/firmware-image.ts';

const folder = mkdtempSync(join(tmpdir(), 'softcvm-cli-'));
afterAll(() => rmSync(folder, { recursive: true }));
const file = (name: string, bytes: Uint8Array | string): string => {
  const path = join(folder, name);
  writeFileSync(path, bytes);
  return path;
};

let lines: string[] = [];
let raw: Buffer[] = [];
beforeEach(() => {
  lines = [];
  raw = [];
  vi.spyOn(console, 'log').mockImplementation((line: string) => void lines.push(line));
  vi.spyOn(console, 'error').mockImplementation(() => {});
  vi.spyOn(process.stdout, 'write').mockImplementation((bytes) => {
    raw.push(Buffer.from(bytes as Uint8Array));
    return true;
  });
});
afterEach(() => vi.restoreAllMocks());

const { report, options, authority, chip } = await evidenceOf('milan');
const [vcek, ask, ark] = options.certificates as [Uint8Array, Uint8Array, Uint8Array];
const paths = {
  report: file('report.bin', report),
  hex: file('report.hex', Buffer.from(report).toString('hex')),
  vcek: file('vcek.der', vcek),
  ask: file('ask.der', ask),
  ark: file('ark.der', ark),
  crl: file('list.crl', options.crls![0]!),
  table: file('table.bin', await authority.certificateTable(chip)),
  chain: file('chain.pem', writePem('CERTIFICATE', ask) + writePem('CERTIFICATE', ark)),
  html: file('index.html', '<html>busy</html>'),
  half: file('half.der', vcek.subarray(0, 400)),
  hexTable: file('table.hex', `${Buffer.from(await authority.certificateTable(chip)).toString('hex')}\n`),
};

describe('softcvm verify', () => {
  const at = '2026-06-01';
  const run = (more: VerifyCommandOptions, path = paths.report): Promise<number> =>
    verify(path, { at, ...more });

  it('ends with 0 if every check holds: certificates from files, a table, hex', async () => {
    expect(await run({ certs: [paths.vcek, paths.ask], roots: [paths.ark] })).toBe(0);
    expect(await run({ certs: [paths.table], roots: [paths.ark], requireCrl: true }, paths.hex)).toBe(0);
    expect(await run({ certs: [paths.hexTable], roots: [paths.ark], requireCrl: true })).toBe(0);
    expect(
      await run({ certs: [paths.vcek, paths.ask, paths.crl], roots: [paths.ark], requireCrl: true }),
    ).toBe(0);
    expect(lines.at(-1)).toMatch(/^verified: \d+ checks$/);
    expect(lines.join('\n')).toContain('marked as made by SoftCVM');
    expect(lines.join('\n')).toContain(`root ${await authority.fingerprint('Milan')}`);
  });

  it('ends with 1 without a root, and says so', async () => {
    expect(await run({ certs: [paths.table], quiet: true })).toBe(1);
    expect(lines[0]).toContain('FAILED  ARK.trusted');
    expect(lines.at(-1)).toMatch(/^not verified: 1 of \d+ checks failed$/);
  });

  it('names as roots those that can be one: of a chain, its ARK', async () => {
    expect(await run({ certs: [paths.table], roots: [paths.chain] })).toBe(0);
    const print = await authority.fingerprint('Milan');
    expect(lines.filter((line) => line.startsWith('root '))).toEqual([`root ${print}`]);
    expect(await run({ certs: [paths.table], roots: [paths.chain], json: true })).toBe(0);
    expect(JSON.parse(lines.at(-1)!).roots).toEqual([print]);
  });

  it('refuses a file that is no report, by its name', async () => {
    await expect(run({ roots: [paths.ark] }, paths.html)).rejects.toMatchObject({
      name: 'InputError',
      message: `report ${paths.html}: got 17 bytes, want 1184`,
    });
  });

  it.each([
    ['{"exit": {"code": 0}}', 'got a run without a report, want one whose guest asked for it'],
    ['{"report": 7}', 'got JSON whose "report" is something else than hex'],
    ['{"report": "0500"}', 'got 2 bytes, want 1184'],
    [
      '{"report": "05", "certificates": {}}',
      'got JSON whose "certificates" is something else than objects with kind and pem',
    ],
    [
      '{"report": "05", "certificates": [null]}',
      'got JSON whose "certificates" is something else than objects with kind and pem',
    ],
    ['{"report": "05', 'got JSON that cannot be read'],
    ['SNP-CERTIFICATES 00\n', 'got a run without a report, want one whose guest asked for it'],
  ])('refuses as a run %s', async (text, message) => {
    const path = file('run.json', text);
    await expect(run({ roots: [paths.ark] }, path)).rejects.toMatchObject({
      name: 'InputError',
      message: expect.stringContaining(`report ${path}: ${message}`),
    });
  });

  it('passes over what a table holds under a GUID that is none of AMD’s', async () => {
    const entries = decodeCertificateTable(await authority.certificateTable(chip));
    const other = { guid: '11111111-2222-3333-4444-555555555555', bytes: new Uint8Array(100).fill(7) };
    const table = file('more.bin', encodeCertificateTable([other, ...entries]));
    expect(await run({ certs: [table], roots: [paths.ark], requireCrl: true })).toBe(0);
    const console = `SNP-REPORT ${Buffer.from(report).toString('hex')}\nSNP-CERTIFICATES ${readFileSync(table, 'hex')}\n`;
    expect(await run({ roots: [paths.ark], requireCrl: true }, file('more.txt', console))).toBe(0);
  });

  it('names the certificate that cannot be read of a run', async () => {
    const certificates = [{ kind: 'VCEK', pem: 'none' }];
    const path = file(
      'run.json',
      JSON.stringify({ report: Buffer.from(report).toString('hex'), certificates }),
    );
    await expect(run({ roots: [paths.ark] }, path)).rejects.toThrow(`report ${path} VCEK: got neither PEM`);
    await expect(run({ roots: [paths.ark], certs: [file('no.json', '{"report": "05"}')] })).rejects.toThrow(
      'no.json: got a run without certificates, want one whose guest asked for them',
    );
  });

  it('judges by policy options', async () => {
    const wanted: VerifyCommandOptions = {
      certs: [paths.table],
      roots: [paths.ark],
      measurement: ['11'.repeat(48)],
      hostData: '22'.repeat(32),
      reportData: '33'.repeat(64),
      vmpl: '0',
      minimumTcb: 'boot-loader=4,snp=24',
      minimumFirmware: '1.55.21',
      signingKey: 'vcek',
      product: 'Milan',
      guestPolicy: '0x30000',
    };
    expect(await run(wanted)).toBe(0);
    expect(await run({ ...wanted, vmpl: '1', minimumTcb: 'snp=25', json: true })).toBe(1);
    const verdict = JSON.parse(lines.at(-1)!);
    expect([verdict.ok, verdict.software]).toEqual([false, true]);
    expect(verdict.checks.filter((one: { ok: boolean }) => !one.ok)).toEqual([
      { name: 'vmpl', ok: false, got: '0', want: '1' },
      { name: 'tcb.minimum.snp', ok: false, got: '24', want: 'at least 25' },
    ]);
  });

  it('takes the certificate that fits, though --certs brings one of another TCB and the server the right one', async () => {
    const stale = file(
      'stale.pem',
      writePem('CERTIFICATE', await authority.vcek(chip, chip.reportedTcb - 1n)),
    );
    const roots = [paths.ark];
    for (const certs of [
      [stale, paths.vcek, paths.ask],
      [paths.ask, paths.vcek, stale],
    ])
      expect(await run({ certs, roots })).toBe(0);
    expect(await run({ certs: [stale, paths.ask], roots })).toBe(1);
    const server = new KeyServer(authority);
    try {
      expect(await run({ certs: [stale], roots, kds: await server.listen(), requireCrl: true })).toBe(0);
    } finally {
      await server.close();
    }
  });

  it('counts age from the file’s time', async () => {
    const path = file('old.bin', report);
    utimesSync(path, new Date('2026-05-31T23:59:00Z'), new Date('2026-05-31T23:59:00Z'));
    const known = { certs: [paths.table], roots: [paths.ark] };
    expect(await run({ ...known, maximumAge: '60' }, path)).toBe(0);
    expect(await run({ ...known, maximumAge: '59' }, path)).toBe(1);
  });

  it('shows failing checks alone with --quiet, in JSON too', async () => {
    const certs = [paths.table];
    expect(await run({ certs, json: true, quiet: true })).toBe(1);
    const { ok, checks } = JSON.parse(lines[0]!);
    expect(ok).toBe(false);
    expect(checks.length).toBeGreaterThan(0);
    expect(checks.every((check: { ok: boolean }) => !check.ok)).toBe(true);
    expect(await run({ certs, json: true })).toBe(1);
    expect(JSON.parse(lines[1]!).checks.length).toBeGreaterThan(checks.length);
  });

  it('asks a key distribution server', async () => {
    const server = new KeyServer(authority);
    try {
      const kds = await server.listen();
      expect(await run({ kds, roots: [paths.ark], requireCrl: true })).toBe(0);
      for (const [how, got] of [
        ['404', 'got status 404'],
        ['429', 'got status 429'],
        ['down', 'no answer'],
      ] as const) {
        server.answer(how);
        await expect(run({ kds, roots: [paths.ark] })).rejects.toMatchObject({
          name: 'InputError',
          message: expect.stringMatching(`^--kds ${kds}/vcek/v1/Milan/.*: ${got}`),
        });
      }
      server.answer('404');
      const older = file(
        'older.bin',
        signedReport(chip, { version: 2, cpuidFamily: 0, cpuidModel: 0, cpuidStepping: 0 }),
      );
      await expect(run({ kds, roots: [paths.ark] }, older)).rejects.toMatchObject({
        message: `--kds ${kds}/vcek: got status 404 for Milan and Genoa, want 200; a report of version 2 does not say its product: --product names it`,
      });
      await expect(run({ kds, roots: [paths.ark], product: 'Milan' }, older)).rejects.toMatchObject({
        message: expect.stringMatching(/Milan.*&ucodeSPL=219: got status 404, want 200$/),
      });
      const chainless = createServer((request, response) => {
        if (request.url!.includes('SPL=')) response.end(readFileSync(paths.vcek));
        else response.writeHead(404).end();
      });
      await new Promise<void>((resolve) => chainless.listen(0, '127.0.0.1', resolve));
      try {
        const url = `http://127.0.0.1:${(chainless.address() as AddressInfo).port}`;
        await expect(run({ kds: url, roots: [paths.ark] }, older)).rejects.toMatchObject({
          message: expect.stringMatching(/Milan\/(cert_chain|crl): got status 404, want 200$/),
        });
      } finally {
        chainless.closeAllConnections();
        chainless.close();
      }
    } finally {
      await server.close();
    }
  });

  it('ends with 1 for an ASK that any list revokes, though the evidence brings an older list', async () => {
    const { authority: later } = await evidenceOf('milan');
    later.revoke('Milan', 'ASK');
    const newer = file('newer.crl', await later.crl('Milan'));
    const revoked = (): unknown =>
      JSON.parse(lines.at(-1)!)
        .checks.filter((one: { ok: boolean }) => !one.ok)
        .map(({ name }: { name: string }) => name);
    const own = { roots: [paths.ark], json: true };
    for (const more of [
      { certs: [paths.table], crl: [newer] },
      { certs: [paths.table, newer] },
      { certs: [newer, paths.table] },
      { certs: [paths.vcek, paths.ask], crl: [newer, paths.crl] },
    ]) {
      expect(await run({ ...own, ...more })).toBe(1);
      expect(revoked()).toEqual(['ASK.revocation']);
    }
    const server = new KeyServer(later);
    try {
      expect(await run({ ...own, certs: [paths.table], kds: await server.listen() })).toBe(1);
      expect(revoked()).toEqual(['ASK.revocation']);
    } finally {
      await server.close();
    }
  });

  it.each([
    ['measurement', '--measurement', '48'],
    ['hostData', '--host-data', '32'],
    ['reportData', '--report-data', '1 to 64'],
    ['chipId', '--chip-id', '64 or 8'],
    ['familyId', '--family-id', '16'],
    ['imageId', '--image-id', '16'],
    ['idKeyDigest', '--id-key-digest', '48'],
    ['authorKeyDigest', '--author-key-digest', '48'],
    ['reportId', '--report-id', '32'],
  ])('names the option of %s that is no hex, or of the wrong length', async (key, option, length) => {
    const isSeveral = /measurement|chipId|Digest/.test(key);
    const good = '00'.repeat(Number.parseInt(length, 10));
    for (const bad of ['', 'xy', 'a', '0x1234zz', 'ab'.repeat(65)]) {
      await expect(run({ [key]: isSeveral ? [good, bad] : bad })).rejects.toMatchObject({
        name: 'InputError',
        message: `${option}: got ${bad || '""'}, want ${length} bytes in hex`,
      });
    }
  });

  it.each([
    [{ certs: ['nowhere'] }, '--certs: got nowhere: no such file'],
    [{ roots: ['nowhere'] }, '--roots: got nowhere: no such file'],
    [
      { certs: [paths.html] },
      `--certs ${paths.html}: got neither PEM nor DER, nor a table (certificate table: got 17 bytes`,
    ],
    [{ certs: [paths.half] }, `--certs ${paths.half}.Certificate: got 396 bytes`],
    [{ crl: [paths.vcek] }, `--crl ${paths.vcek}.CertificateList.`],
    [{ roots: [paths.half] }, `--roots ${paths.half}.Certificate: got 396 bytes`],
    [{ kds: 'http://127.0.0.1:99999' }, '--kds url: got http://127.0.0.1:99999, want an address such as'],
    [{ kds: 'ftp://127.0.0.1' }, '--kds url: got ftp://127.0.0.1, want an address such as'],
    [{ kds: 'kdsintf.amd.com' }, '--kds url: got kdsintf.amd.com, want an address such as'],
    [{ vmpl: '4' }, '--vmpl: got 4'],
    [{ measurement: ['12'] }, '--measurement: got 12, want 48 bytes in hex'],
    [{ allow: ['everything'] }, '--allow: got everything'],
    [{ minimumTcb: 'ucode=3' }, '--minimum-tcb: got ucode=3'],
    [{ minimumAbi: '1' }, '--minimum-abi: got 1'],
    [{ guestPolicy: 'x' }, '--guest-policy: got x'],
    ...['noon', '-1', '1.5', '1', '', '2026-02-30', '2026-13-01', '2026-11-21T24:00:00Z', '21 Nov 2026'].map(
      (wrong): [VerifyCommandOptions, string] => [
        { at: wrong },
        `--at: got ${wrong || '""'}, want a time such as 2026-11-21T08:00:00Z`,
      ],
    ),
    [{ signingKey: 'vcel' }, '--signing-key: got vcel, want VCEK or VLEK'],
    [{ certs: [''] }, '--certs: got "": no such file'],
    [{ reportData: '' }, '--report-data: got "", want 1 to 64 bytes in hex'],
    [{ product: 'Rome' }, '--product: got Rome'],
    [{ obtained: '2026-06-01T00:00:00Z' }, '--obtained: got it without --maximum-age, want both'],
  ] as [VerifyCommandOptions, string][])('refuses %j as bad input', async (bad, message) => {
    await expect(run(bad)).rejects.toMatchObject({
      name: 'InputError',
      message: expect.stringContaining(message),
    });
  });
});

describe('softcvm measure', () => {
  const ovmf = file('OVMF.fd', firmwareImage());
  const usual: MeasureCommandOptions = {
    mode: 'snp',
  };
  const peer = { ...usual, ovmf, vcpus: '2', vcpuType: 'EPYC-Milan' };
  const digest = async (one: MeasureCommandOptions, image?: string): Promise<string> => {
    expect(await measure(image, one)).toBe(0);
    return lines.at(-1)!;
  };

  it('prints the digest alone', async () => {
    expect(await digest(peer)).toMatch(/^[0-9a-f]{96}$/);
    expect(lines).toHaveLength(1);
  });

  it('takes an image by itself, with a Milan’s vCPU', async () => {
    expect(await digest(usual, ovmf)).toBe(await digest({ ...peer, vcpus: '1' }));
  });

  it('knows one vCPU by type, signature or family', async () => {
    const { vcpuType: _, ...without } = peer;
    const want = await digest(peer);
    expect(await digest({ ...without, vcpuSig: '0xa00f11' })).toBe(want);
    expect(await digest({ ...without, vcpuFamily: '25', vcpuModel: '1', vcpuStepping: '1' })).toBe(want);
    expect(await digest({ ...without, vcpuSig: '0xa10f10' })).not.toBe(want);
  });

  it('goes on from the digest of the image', async () => {
    const snpOvmfHash = await digest({ ovmf, mode: 'snp:ovmf-hash' });
    expect(await digest({ ...peer, snpOvmfHash })).toBe(await digest(peer));
  });

  it('explains page by page', async () => {
    expect(await measure(undefined, { ...peer, explain: true, json: true })).toBe(0);
    const { measurement, pages } = JSON.parse(lines[0]!);
    expect(pages).toHaveLength(9);
    expect(pages[0]).toMatchObject({ gpa: '0xffffe000', type: 'normal' });
    expect(pages.at(-1).digest).toBe(measurement);
  });

  it('says where two images differ, and ends with 1', async () => {
    const other = firmwareImage();
    other[0x10] = 0;
    const diff = file('other.fd', other);
    expect(await measure(undefined, { ...peer, diff })).toBe(1);
    expect(lines[0]).toMatch(
      /^page 0, firmware, normal at 0xffffe000: bytes from 0x10 of the page: 70.* here, 00.* there$/,
    );
    expect(await measure(undefined, { ...peer, diff: ovmf })).toBe(0);
    await expect(measure(undefined, { ...peer, diff: '/absent' })).rejects.toThrow(
      '--diff: got /absent: no such',
    );
    await expect(measure(ovmf, { ...usual, diff: '/absent' })).rejects.toThrow(
      '--diff: got /absent: no such',
    );
  });

  it.each([
    [{ ...usual }, 'want one image'],
    [{ ...usual, ovmf }, '--vcpus: got nothing'],
    [{ ...usual, ovmf, vcpus: '1' }, '--vcpu-type: got nothing'],
    [{ ...peer, vcpuType: 'EPYC-Venice' }, '--vcpu-type: got EPYC-Venice'],
    [{ ...peer, vmmType: 'xen' }, '--vmm-type: got xen, want qemu or ec2 or gce'],
    [{ ...peer, guestFeatures: '1x' }, '--guest-features: got 1x'],
    [{ ...peer, initrd: ovmf }, '--initrd: got it without --kernel'],
    [{ ...peer, append: 'x' }, '--append: got it without --kernel'],
    [{ ...peer, ovmf: 'nowhere' }, '--ovmf: got nowhere: no such file'],
    [{ ...peer, ovmf: file('half', new Uint8Array(9)) }, 'got 9 bytes'],
    [{ ...peer, mode: 'tdx' }, '--mode: got tdx'],
    [{ ...peer, snpOvmfHash: 'ab' }, '--snp-ovmf-hash: got ab'],
    [
      { ...peer, mode: 'snp:ovmf-hash' },
      '--vcpus: got it with --mode snp:ovmf-hash, which is the image alone',
    ],
    [
      { ovmf, mode: 'snp:ovmf-hash', snpOvmfHash: '00'.repeat(48) },
      '--snp-ovmf-hash: got it with --mode snp:ovmf-hash, which is the image alone',
    ],
    [
      { ovmf, mode: 'snp:ovmf-hash', guestFeatures: '0x1' },
      '--guest-features: got it with --mode snp:ovmf-hash',
    ],
    [{ ...peer, vcpuSig: '0xa00f11' }, '--vcpu-type: got it with --vcpu-sig, want one of them'],
    [{ ...peer, vcpuFamily: '25' }, '--vcpu-type: got it with --vcpu-family, want one of them'],
    [
      { ...peer, diff: file('no.fd', 'x') },
      `--diff ${join(folder, 'no.fd')}: got 1 bytes, want a multiple of 4096`,
    ],
    [{ ...peer, vmmType: 'Xen' }, '--vmm-type: got Xen, want qemu or ec2 or gce'],
    [{ ...peer, vcpuModel: '1' }, '--vcpu-model: got it without --vcpu-family, want both'],
    [{ ...peer, vcpuStepping: '1' }, '--vcpu-stepping: got it without --vcpu-family, want both'],
    [{ ...peer, diff: ovmf, explain: true }, '--explain: got it with --diff, want one of them'],
    [
      { ...peer, diff: ovmf, outputFormat: 'hex' },
      '--output-format: got it with --diff, which prints no digest',
    ],
  ] as [MeasureCommandOptions, string][])('refuses %j as bad input', async (bad, message) => {
    await expect(measure(undefined, bad)).rejects.toMatchObject({
      name: 'InputError',
      message: expect.stringContaining(message),
    });
  });

  it('knows guests that come along by name, and refuses others', async () => {
    expect(await measure('attester', usual)).toBe(0);
    expect(await measure('attester.fd', usual)).toBe(0);
    expect(lines).toEqual([expect.stringMatching(/^[0-9a-f]{96}$/), expect.stringMatching(/^[0-9a-f]{96}$/)]);
    await expect(measure('absent', usual)).rejects.toThrow(
      'image: got absent: no such file, nor a guest of that name',
    );
  });

  it('names the option of another image that is none', async () => {
    const diff = file('no-image', 'x');
    await expect(measure('attester', { ...usual, diff })).rejects.toThrow(
      `--diff: got ${diff}, want an ELF file, a flat binary (.bin), or firmware with a GUIDed table as OVMF has`,
    );
  });

  it.each(['random', 'random.elf'])('refuses %s, which is no kind of image, by its name', async (name) => {
    const path = file(name, new Uint8Array(4096).fill(0x90));
    await expect(measure(path, usual)).rejects.toMatchObject({
      name: 'InputError',
      message: `image: got ${path}, want an ELF file, a flat binary (.bin), or firmware with a GUIDed table as OVMF has`,
    });
  });

  it('measures the same bytes as a flat binary where the name says so, and refuses an empty one', async () => {
    expect(await digest(usual, file('flat.bin', new Uint8Array(4096).fill(0x90)))).toMatch(/^[0-9a-f]{96}$/);
    await expect(measure(file('empty.bin', ''), usual)).rejects.toMatchObject({
      name: 'InputError',
      message: 'image: flat binary: got 0 bytes, want at least one',
    });
  });

  it('refuses for an ELF image what only firmware has', async () => {
    await expect(measure('attester', { ...usual, vcpuType: 'EPYC-Genoa' })).rejects.toThrow(
      '--vcpu-type: got it for an ELF image, want a firmware image',
    );
    await expect(measure('attester', { ...usual, vmmType: 'ec2' })).rejects.toThrow(
      '--vmm-type: got it for an ELF image, want a firmware image',
    );
    await expect(measure('attester', { mode: 'snp:ovmf-hash' })).rejects.toThrow(
      '--mode: got snp:ovmf-hash for an ELF image, want a firmware image',
    );
  });

  it('names the modes that it does not have', async () => {
    await expect(measure(undefined, { ...peer, mode: 'seves' })).rejects.toThrow(
      '--mode: got seves, which is not implemented; want snp or snp:ovmf-hash',
    );
  });
});

describe('softcvm report show', () => {
  it('shows fields by name', () => {
    showReport(paths.hex, {});
    expect(lines).toContain(`measurement          ${'11'.repeat(48)}`);
    expect(lines.find((line) => line.startsWith('reported tcb'))).toContain(
      'bootLoader 4, tee 0, snp 24, microcode 219',
    );
    showReport(paths.report, { json: true });
    expect(JSON.parse(lines.at(-1)!)).toMatchObject({
      version: '3',
      signing_key: 'VCEK',
      chip_key: 'not masked',
    });
  });

  it('refuses what is no report', () => {
    expect(() => showReport(paths.vcek, {})).toThrow('want 1184');
  });
});

describe('softcvm certs', () => {
  const seed = '7';
  const output = async (what: string, more: object = {}): Promise<Buffer> => {
    raw = [];
    expect(await certs(what, { product: 'Milan', seed, ...more })).toBe(0);
    return Buffer.concat(raw);
  };

  it('prints chain, key, list and table', async () => {
    expect(readCertificates(await output('chain')).map(({ kind }) => kind)).toEqual(['ASK', 'ARK']);
    expect(readCertificates(await output('vlek-chain')).map(({ kind }) => kind)).toEqual(['ASVK', 'ARK']);
    expect(parseCertificate(await output('vcek', { der: true }))).toMatchObject({
      kind: 'VCEK',
      product: 'Milan',
    });
    expect((await output('crl')).toString()).toMatch(/^-----BEGIN X509 CRL-----/);
    expect(await output('table')).toEqual(Buffer.from(await authority.certificateTable(chip)));
  });

  it.each([
    ['table', 'vcek'],
    ['vlek-table', 'vlek'],
  ])('makes the %s for the TCB that it is told, with the %s of that TCB', async (table, key) => {
    const tcb = '0x5218000000000004';
    const [leaf] = decodeCertificateTable(await output(table, { tcb }));
    expect(Buffer.from(leaf!.bytes)).toEqual(await output(key, { tcb, der: true }));
    expect(parseCertificate(leaf!.bytes)).toMatchObject({ kind: key.toUpperCase() });
    expect(parseCertificate(leaf!.bytes).amd.levels.get('1.3.6.1.4.1.3704.1.3.8')).toBe(0x52);
    expect(await output(table, { tcb })).not.toEqual(await output(table));
  });

  it('prints the root’s fingerprint', async () => {
    const fingerprint = `${await authority.fingerprint('Turin')}\n`;
    expect((await output('fingerprint', { product: 'Turin' })).toString()).toBe(fingerprint);
  });

  it('prints the chips, of all generations or of one, to a file too', async () => {
    const chips = (await output('chips', { product: undefined })).toString();
    expect(chips.match(/^(Milan|Genoa|Turin)(?= [0-9a-f]+ reported TCB 0x[0-9a-f]{16}$)/gm)).toEqual([
      'Milan',
      'Genoa',
      'Turin',
    ]);
    const turins = (await output('chips', { product: 'Turin' })).toString();
    expect(turins).toBe(`${chips.split('\n')[2]}\n`);
    const out = join(folder, 'chips.txt');
    expect(await output('chips', { product: 'Turin', out })).toHaveLength(0);
    expect(readFileSync(out, 'utf8')).toBe(turins);
  });

  it('takes a chip by its id, a provider’s key at that chip’s TCB too', async () => {
    const id = Buffer.from(chip.fuses.id).toString('hex');
    for (const what of ['vcek', 'vlek', 'table', 'vlek-table'])
      expect(await output(what, { chip: id.toUpperCase() })).toEqual(await output(what));
  });

  it.each([
    ['keys', {}, 'certs: got keys'],
    ['chain', { product: 'Rome' }, '--product: got Rome'],
    ['chain', { der: true }, '--der: got it with chain, want it with root, vcek, vlek or crl'],
    ['vcek', { tcb: '0' }, '--tcb: got 0, want a TCB_VERSION in hex, such as 0x5218000000000004'],
    ['vcek', { tcb: '0x5218000000010004' }, '--tcb: got 0x5218000000010004, want a TCB_VERSION of a Milan'],
    [
      'table',
      { tcb: 'garbage' },
      '--tcb: got garbage, want a TCB_VERSION in hex, such as 0x5218000000000004',
    ],
    ['vlek-table', { tcb: 'garbage' }, '--tcb: got garbage'],
    ['vcek', { chip: 'ab' }, '--chip: got ab'],
    [
      'vcek',
      { chip: `${Buffer.from(chip.fuses.id).toString('hex')}zz` },
      'want the id of a Milan of this authority, 64 bytes in hex',
    ],
    ['vlek', { chip: 'ab' }, '--chip: got ab'],
    ...['root', 'chain', 'vlek-chain', 'crl', 'fingerprint', 'chips'].flatMap(
      (what): [string, Partial<CertsCommandOptions>, string][] => [
        [what, { chip: 'ab' }, `--chip: got it with ${what}, want it with vcek, vlek, table or vlek-table`],
        [what, { tcb: '0x1' }, `--tcb: got it with ${what}, want it with vcek, vlek, table or vlek-table`],
      ],
    ),
    ...['table', 'vlek-table', 'fingerprint', 'chips'].map(
      (what): [string, Partial<CertsCommandOptions>, string] => [
        what,
        { der: true },
        `--der: got it with ${what}, want it with root, vcek, vlek or crl`,
      ],
    ),
    ['root', { state: folder }, '--seed: got --state as well'],
    ['root', { out: '/absent/root.pem' }, '--out: got /absent/root.pem: no such directory'],
    ['root', { out: folder }, `--out: got ${folder}: is a directory`],
    ['root', { out: folder }, `--out: got ${folder}: `],
  ])('refuses %s %j', async (what, more, message) => {
    await expect(certs(what, { product: 'Milan', seed, ...more })).rejects.toThrow(message);
  });
});

describe('a state directory', () => {
  it.each([
    ['', '--state: got "", want a directory'],
    [
      paths.report,
      `--state: got ${paths.report}: ${paths.report}: got ENOTDIR, want a directory that can be read`,
    ],
  ])('is not %j', async (state, message) => {
    await expect(certs('root', { state })).rejects.toMatchObject({ name: 'InputError', message });
  });
});

describe('softcvm kds', () => {
  const usual = { seed: '7', port: '0', host: '127.0.0.1', answer: 'normal' };
  it.each([
    [{ count: '3' }, '--count: got it with --answer normal, want 404, 429 or down'],
    [{ answer: '404', count: 'x' }, '--count: got x, want a number from 0 to 4294967296'],
    [{ answer: '500' }, '--answer: got 500, want normal or 404 or 429 or down'],
    [{ port: '65536' }, '--port: got 65536, want a number from 0 to 65535'],
    [{ host: '' }, '--host: got "", want an address'],
    [{ secondsPerKey: '-1' }, '--seconds-per-key: got -1, want a number from 0 to 3600'],
  ])('refuses %j', async (more, message) => {
    await expect(kds({ ...usual, ...more })).rejects.toMatchObject({ name: 'InputError', message });
  });
});
