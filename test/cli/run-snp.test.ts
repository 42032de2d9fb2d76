import { generateKeyPairSync, type KeyObject, sign } from 'node:crypto';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, describe, expect, it, vi } from 'vitest';
import { verifyReport } from '../../src/attest/index.ts';
import { Authority } from '../../src/authority/authority.ts';
import { measure } from '../../src/cli/measure.ts';
import { type RunCommandOptions, run } from '../../src/cli/run.ts';
import { InputError } from '../../src/cli/size.ts';
import { verify } from '../../src/cli/verify.ts';

const DEFAULTS: RunCommandOptions = {
  type: 'sev-snp',
  memory: '16M',
  smp: '1',
  seed: '9',
  timeout: '60',
};
const GUEST_DATA = 'a5'.repeat(64);
const folder = mkdtempSync(join(tmpdir(), 'softcvm-cli-'));
afterAll(() => rmSync(folder, { recursive: true }));
afterEach(() => vi.restoreAllMocks());

interface Report {
  readonly exit: { readonly code: number };
  readonly console: string;
  readonly launch: { readonly measurement: string; readonly pages: number; readonly policy: string };
  readonly report: string;
  readonly certificates: readonly { readonly kind: string; readonly pem: string }[];
}

/** What --json prints. */
async function attest(options: Partial<RunCommandOptions> = {}): Promise<Report> {
  const lines: string[] = [];
  vi.spyOn(console, 'log').mockImplementation((line) => lines.push(line));
  await run('attester', { ...DEFAULTS, json: true, ...options });
  vi.restoreAllMocks();
  expect(lines).toHaveLength(1);
  return JSON.parse(lines[0]!);
}
const field = ({ report }: Report, offset: number, bytes: number): string =>
  report.slice(2 * offset, 2 * (offset + bytes));
const file = (name: string, bytes: Uint8Array | string): string => {
  const path = join(folder, name);
  writeFileSync(path, bytes);
  return path;
};

describe('softcvm run --type sev-snp', () => {
  it('prints launch, report and certificates, which verify', async () => {
    const result = await attest({ guestData: GUEST_DATA, hostData: '0b'.repeat(32), policy: '0x130000' });
    expect(result.exit.code).toBe(0);
    expect(result.launch).toEqual({
      measurement: field(result, 0x90, 48),
      pages: expect.any(Number),
      policy: '0x130000',
    });
    expect(result.launch.pages).toBeGreaterThan(20);
    expect(result.report).toHaveLength(2 * 1184);
    expect(field(result, 0x50, 64)).toBe(GUEST_DATA);
    expect(field(result, 0xc0, 32)).toBe('0b'.repeat(32));
    expect(result.certificates.map(({ kind }) => kind)).toEqual(['VCEK', 'ASK', 'ARK', 'CRL']);
    expect(result.certificates.at(-1)!.pem).toMatch(/^-----BEGIN X509 CRL-----\n/);
    const verdict = await verifyReport(Buffer.from(result.report, 'hex'), {
      certificates: result.certificates.slice(0, 3).map(({ pem }) => Buffer.from(pem)),
      roots: [await Authority.seeded(9).ark('Milan')],
      policy: { measurement: result.launch.measurement, reportData: GUEST_DATA },
    });
    expect(verdict.failures).toEqual([]);
  });

  it('is verified by what it printed alone, JSON or console', async () => {
    const result = await attest({ guestData: GUEST_DATA });
    const root = file('root.der', await Authority.seeded(9).ark('Milan'));
    const json = file('run.json', JSON.stringify(result));
    const text = file('console.txt', result.console);
    const report = file('report.hex', result.report);
    const changed = file(
      'changed.json',
      JSON.stringify({ ...result, report: `05${result.report.slice(2)}` }),
    );
    vi.spyOn(console, 'log').mockImplementation(() => {});
    for (const path of [json, text]) {
      expect(await verify(path, { roots: [root], reportData: GUEST_DATA, requireCrl: true })).toBe(0);
      expect(await verify(report, { roots: [root], certs: [path] })).toBe(0);
    }
    expect(await verify(changed, { roots: [root] })).toBe(1);
    expect(await verify(report, { roots: [root] })).toBe(1);
  });

  it.each(['milan', 'genoa', 'turin'])(
    'has a %s sign with the provider’s key that it was given, and the certificates for it',
    async (chip) => {
      const result = await attest({ chip, signingKey: 'VLEK' });
      expect(result.certificates.map(({ kind }) => kind)).toEqual(['VLEK', 'ASK', 'ARK', 'CRL']);
      const path = file('vlek.json', JSON.stringify(result));
      const product = `${chip[0]!.toUpperCase()}${chip.slice(1)}` as 'Milan' | 'Genoa' | 'Turin';
      const roots = [file('root.der', await Authority.seeded(9).ark(product))];
      vi.spyOn(console, 'log').mockImplementation(() => {});
      expect(await verify(path, { roots, signingKey: 'VLEK', requireCrl: true })).toBe(0);
      expect(await verify(path, { roots, signingKey: 'VCEK' })).toBe(1);
    },
  );

  it('measures as softcvm measure says it must', async () => {
    const { launch } = await attest();
    const lines: string[] = [];
    vi.spyOn(console, 'log').mockImplementation((line) => lines.push(line));
    await measure('attester', { mode: 'snp' });
    expect(lines).toEqual([launch.measurement]);
  });

  it('runs on the chip of the directory that --state names, and makes it where there is none', async () => {
    const { seed: _, ...unseeded } = DEFAULTS;
    const state = join(folder, 'state');
    const lines: string[] = [];
    vi.spyOn(console, 'log').mockImplementation((line) => lines.push(line));
    await run('attester', { ...unseeded, json: true, state, chip: 'turin' });
    vi.restoreAllMocks();
    const result: Report = JSON.parse(lines[0]!);
    const [chip] = Authority.stored(state).chips();
    expect(chip!.personality.product).toBe('Turin');
    expect(field(result, 0x1a0, 64)).toBe(Buffer.from(chip!.chipId).toString('hex'));
  });

  it('gives the chip another TCB, with the certificate for it', async () => {
    const result = await attest({ tcb: '0x4805000000000003' });
    for (const offset of [0x38, 0x180, 0x1e0, 0x1f0])
      expect(field(result, offset, 8)).toBe('0300000000000548');
    const verdict = await verifyReport(Buffer.from(result.report, 'hex'), {
      certificates: result.certificates.slice(0, 3).map(({ pem }) => Buffer.from(pem)),
      roots: [await Authority.seeded(9).ark('Milan')],
    });
    expect(verdict.failures).toEqual([]);
  });

  it('gives the guest the certificates of --certs and no others', async () => {
    const table = await Authority.seeded(11).certificateTable(Authority.seeded(11).chip('genoa'));
    const result = await attest({ certs: file('table', table) });
    const other = Buffer.from(await Authority.seeded(11).ark('Genoa'))
      .toString('base64')
      .slice(0, 60);
    expect(result.certificates.find(({ kind }) => kind === 'ARK')!.pem.replaceAll('\n', '')).toContain(other);
  });

  it('launches with an ID block whose keys the report shows, and not with a wrong one', async () => {
    const { launch } = await attest();
    const block = new Uint8Array(96);
    block.set(Buffer.from(launch.measurement, 'hex'));
    block.fill(0xfa, 0x30, 0x40);
    const view = new DataView(block.buffer);
    view.setUint32(0x50, 1, true);
    view.setUint32(0x54, 7, true);
    view.setBigUint64(0x58, 0x30000n, true);
    const key = generateKeyPairSync('ec', { namedCurve: 'P-384' }).privateKey;
    const author = generateKeyPairSync('ec', { namedCurve: 'P-384' }).privateKey;
    const idAuth = file('auth', authentication(block, key, author));
    const idBlock = file('block', Buffer.from(block).toString('base64'));
    const result = await attest({ idBlock, idAuth, authorKey: true });
    expect(field(result, 0x10, 16)).toBe('fa'.repeat(16));
    expect(field(result, 0x04, 4)).toBe('07000000');
    expect(field(result, 0xe0, 48)).not.toBe('00'.repeat(48));
    expect(field(result, 0x110, 48)).not.toBe('00'.repeat(48));
    block[0]! ^= 1;
    const wrong = file('wrong', block);
    const inBlock = Buffer.from(block.subarray(0, 48)).toString('hex');
    await expect(attest({ idBlock: wrong, idAuth })).rejects.toThrow(
      new InputError(
        `--id-block: got ${wrong} for a launch digest ${inBlock}, want it for ${launch.measurement} (firmware: BAD_MEASUREMENT)`,
      ),
    );
  });

  it.each([
    [{ guestData: 'a5' }, '--guest-data: got a5, want 64 bytes in hex'],
    [{ hostData: 'x'.repeat(64) }, `--host-data: got ${'x'.repeat(64)}, want 32 bytes in hex`],
    [
      { policy: '0x1ffffffffffffffff' },
      '--policy: got 0x1ffffffffffffffff, want a number of 64 bits such as 0x30000',
    ],
    [{ chip: 'rome' }, '--chip: got rome, want milan or genoa or turin'],
    [{ tcb: '0x0000000000010000' }, '--tcb: got 0x0000000000010000, want a TCB_VERSION of a milan'],
    [{ idBlock: '/nowhere' }, '--id-block: got /nowhere: no such file'],
    [{ certs: '/nowhere' }, '--certs: got /nowhere: no such file'],
    [{ certs: 'README.md' }, '--certs: got README.md: certificate table'],
    [
      { certsBusy: 'often' },
      '--certs-busy: got often, want a number of requests, such as 3, or a share, such as 25%',
    ],
    [{ signingKey: 'VTEK' }, '--signing-key: got VTEK, want VCEK or VLEK'],
    [
      { type: 'default', signingKey: 'VLEK' },
      '--signing-key: got it with --type default, want --type sev-snp',
    ],
    [{ certsBusy: '101%' }, '--certs-busy: got 101%, want'],
    [
      { certs: 'x', kernel: '6.12' },
      '--certs: got it with --kernel 6.12, which never asks for them; want --early certs',
    ],
    [{ accel: 'kvm' }, '--accel kvm: got --seed'],
    [{ type: 'default', policy: '0x30000' }, '--policy: got it with --type default, want --type sev-snp'],
    [
      { type: 'sw-protected', authorKey: true },
      '--author-key: got it with --type sw-protected, want --type sev-snp',
    ],
    [{ type: 'tdx' }, '--type: got tdx, want sw-protected or default or sev-snp'],
  ] as const)('says what is wrong with %j', async (options, message) => {
    await expect(run('attester', { ...DEFAULTS, ...options })).rejects.toThrow(message);
  });

  it('refuses an author key without the blocks that it signs', async () => {
    await expect(run('attester', { ...DEFAULTS, authorKey: true })).rejects.toMatchObject({
      name: 'InputError',
      message: '--author-key: got it without --id-block and --id-auth, want all three',
    });
  });

  it('wants ID block and authentication of the right size, and both', async () => {
    const idBlock = file('short', new Uint8Array(95));
    const idAuth = file('long', new Uint8Array(4097));
    await expect(attest({ idBlock })).rejects.toThrow('with 95 bytes, want exactly 96, binary or base64');
    await expect(attest({ idAuth })).rejects.toThrow('with 4097 bytes, want at most 4096');
    const good = file('good', new Uint8Array(96));
    await expect(attest({ idBlock: good })).rejects.toThrow(
      '--id-block, --id-auth: got one of them, want both or none',
    );
  });

  it.each([
    [{ policy: '0' }, /^--policy: got 0: sev-snp-guest: SNP_LAUNCH_START: EINVAL: .*bit 17 must be 1$/],
    [{ policy: '0x10000' }, /^--policy: got 0x10000: .*bit 17 must be 1$/],
    [{ policy: '0x3ff00' }, /^--policy: got 0x3ff00: .*firmware error 7 \(POLICY_FAILURE\)$/],
  ] as const)('says why a policy cannot be launched: %j', async (options, message) => {
    const error = await attest(options).catch((error: unknown) => error);
    expect(error).toBeInstanceOf(InputError);
    expect((error as Error).message).toMatch(message);
  });

  it('says when an image that ended at once is no SNP guest', async () => {
    const lines: string[] = [];
    vi.spyOn(console, 'error').mockImplementation((line) => lines.push(line));
    expect(await run('hello', DEFAULTS)).toBe(125);
    expect(lines.join('\n')).toMatch(
      /triple fault.*; it never spoke to its host: is hello built as an SNP guest\?$/,
    );
  });

  it('puts the guest off as often as --certs-busy says, and it asks again', async () => {
    const asked = async (certsBusy: string): Promise<number> => {
      const { exits, certificates } = (await attest({ certsBusy })) as Report & {
        exits: { req_certs: number };
      };
      expect(certificates.map(({ kind }) => kind)).toEqual(['VCEK', 'ASK', 'ARK', 'CRL']);
      return exits.req_certs;
    };
    const never = await asked('0%');
    expect(await asked('3')).toBe(never + 3);
    expect(await asked('75%')).toBeGreaterThan(never);
  });
});

const reversed = (bytes: Uint8Array): Uint8Array => Uint8Array.from(bytes).reverse();

/** Curve 2, QX and QY, little-endian in 72 bytes each. */
function publicKey(key: KeyObject): Uint8Array {
  const { x, y } = key.export({ format: 'jwk' });
  const bytes = new Uint8Array(0x404);
  bytes[0] = 2;
  bytes.set(reversed(Buffer.from(x!, 'base64url')), 4);
  bytes.set(reversed(Buffer.from(y!, 'base64url')), 0x4c);
  return bytes;
}

function signature(key: KeyObject, data: Uint8Array): Uint8Array {
  const raw = sign('sha384', data, { key, dsaEncoding: 'ieee-p1363' });
  const bytes = new Uint8Array(512);
  bytes.set(reversed(raw.subarray(0, 48)));
  bytes.set(reversed(raw.subarray(48)), 72);
  return bytes;
}

function authentication(block: Uint8Array, key: KeyObject, author: KeyObject): Uint8Array {
  const bytes = new Uint8Array(4096);
  bytes[0] = 1;
  bytes[4] = 1;
  bytes.set(signature(key, block), 0x40);
  bytes.set(publicKey(key), 0x240);
  bytes.set(signature(author, publicKey(key)), 0x680);
  bytes.set(publicKey(author), 0x880);
  return bytes;
}
