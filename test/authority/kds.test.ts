import { afterAll, describe, expect, it } from 'vitest';
import {
  fetchEvidence,
  type KdsError,
  parseCertificate,
  parseReport,
  readCertificates,
  verifyReport,
} from '../../src/attest/index.ts';
import { Authority } from '../../src/authority/authority.ts';
import { KeyServer } from '../../src/authority/kds.ts';
import { evidenceOf, NOW, signedReport } from '../attest/evidence.ts';

const authority = Authority.seeded(7);
const milan = authority.chip('milan');
const id = Buffer.from(milan.chipId).toString('hex');
let time = 0;
const server = new KeyServer(authority, { now: () => time });
const url = await server.listen();
const limited = new KeyServer(authority, { secondsPerKey: 10, now: () => time });
const limitedUrl = await limited.listen();
afterAll(() => Promise.all([server.close(), limited.close()]));

const levels = 'blSPL=04&teeSPL=00&snpSPL=24&ucodeSPL=219';
const get = async (
  path: string,
  base = url,
): Promise<{ status: number; bytes: Buffer; headers: Headers }> => {
  const { status, headers, ...response } = await fetch(base + path).then(async (one) => ({
    status: one.status,
    headers: one.headers,
    bytes: Buffer.from(await one.arrayBuffer()),
  }));
  return { status, headers, ...response };
};
const control = async (order: unknown): Promise<number> =>
  (await fetch(`${url}/softcvm/answer`, { method: 'POST', body: JSON.stringify(order) })).status;

describe('the key distribution server', () => {
  it.each(['Milan', 'Genoa', 'Turin'])(
    'sends the chains of %s as PEM: ASK or ASVK first, ARK second',
    async (product) => {
      for (const [endpoint, kind] of [
        ['vcek', 'ASK'],
        ['vlek', 'ASVK'],
      ] as const) {
        const { status, bytes } = await get(`/${endpoint}/v1/${product}/cert_chain`);
        expect(status).toBe(200);
        expect(readCertificates(bytes).map((one) => [one.kind, one.product])).toEqual([
          [kind, product],
          ['ARK', product],
        ]);
      }
    },
  );

  it('sends a chip’s VCEK as DER, by its id and levels', async () => {
    const { status, bytes } = await get(`/vcek/v1/Milan/${id}?${levels}`);
    expect(status).toBe(200);
    expect(bytes).toEqual(Buffer.from(await authority.vcek(milan, 0xdb18_0000_0000_0004n)));
  });

  it('takes a Turin by 8 bytes of its id, with fmcSPL', async () => {
    const turin = authority.chip('turin');
    const hwid = Buffer.from(turin.chipId.subarray(0, 8)).toString('hex');
    const { status, bytes } = await get(
      `/vcek/v1/Turin/${hwid}?fmcSPL=01&blSPL=01&teeSPL=01&snpSPL=04&ucodeSPL=76`,
    );
    expect([status, parseCertificate(bytes).amd.hwid?.length]).toEqual([200, 8]);
    expect((await get(`/vcek/v1/Turin/${hwid}?blSPL=01&teeSPL=01&snpSPL=04&ucodeSPL=76`)).status).toBe(400);
  });

  it('sends VLEKs and revocation lists', async () => {
    expect(parseCertificate((await get(`/vlek/v1/Milan/cert?${levels}`)).bytes).kind).toBe('VLEK');
    const list = await get('/vcek/v1/Milan/crl');
    expect(list.bytes).toEqual(Buffer.from(await authority.crl('Milan')));
    expect(list.headers.get('content-type')).toBe('application/octet-stream');
  });

  it.each([
    ['/', 404],
    ['/vcek/v1/Rome/cert_chain', 404],
    ['/vcek/v2/Milan/cert_chain', 404],
    ['/vcxk/v1/Milan/cert_chain', 404],
    ['/vcek/v1/Milan', 404],
    ['/vcek/v1/Milan/cert_chain/more', 404],
    [`/vlek/v1/Milan/chain?${levels}`, 404],
    [`/vcek/v1/Milan/${'0'.repeat(128)}?${levels}`, 404],
    [`/vcek/v1/Genoa/${id}?${levels}`, 404],
    [`/vcek/v1/Milan/${id.slice(1)}?${levels}`, 400],
    [`/vcek/v1/Milan/${'g'.repeat(128)}?${levels}`, 400],
    [`/vcek/v1/Milan/${id}`, 400],
    [`/vcek/v1/Milan/${id}?${levels.replace('219', '256')}`, 400],
    [`/vcek/v1/Milan/${id}?${levels.replace('219', '-1')}`, 400],
    [`/vcek/v1/Milan/${id}?${levels.replace('219', '255')}`, 200],
    ['/softcvm/answer', 404],
  ])('answers %s with %i', async (path, status) => {
    expect((await get(path)).status).toBe(status);
  });

  it('answers other methods with 405', async () => {
    const status = async (method: string) => (await fetch(`${url}/vcek/v1/Milan/crl`, { method })).status;
    expect(await status('PUT')).toBe(405);
    expect(await status('POST')).toBe(405);
    expect(await status('HEAD')).toBe(200);
  });

  it('answers as it is told, as often as it is told', async () => {
    expect(await control({ answer: '429', count: 2, retryAfter: 5 })).toBe(200);
    const first = await get('/vcek/v1/Milan/crl');
    expect([first.status, first.headers.get('retry-after')]).toEqual([429, '5']);
    expect((await get('/vcek/v1/Milan/crl')).status).toBe(429);
    expect((await get('/vcek/v1/Milan/crl')).status).toBe(200);
    expect(await control({ answer: '404' })).toBe(200);
    expect((await get('/vcek/v1/Milan/crl')).status).toBe(404);
    await control({ answer: 'down', count: 1 });
    await expect(get('/vcek/v1/Milan/crl')).rejects.toThrow();
    expect((await get('/vcek/v1/Milan/crl')).status).toBe(200);
  });

  it.each([
    [{ answer: 'maybe' }, 400],
    [{ answer: '404', count: -1 }, 400],
    [{ answer: '404', retryAfter: 'soon' }, 400],
    ['x'.repeat(4094), 400],
    ['x'.repeat(4095), 413],
  ])('refuses the order %j with %i', async (order, status) => {
    expect(await control(order)).toBe(status);
    expect((await get('/vcek/v1/Milan/crl')).status).toBe(200);
  });

  it('limits keys for each client, not chains', async () => {
    const vcek = `/vcek/v1/Milan/${id}?${levels}`;
    expect((await get(vcek, limitedUrl)).status).toBe(200);
    const second = await get(vcek, limitedUrl);
    expect([second.status, second.headers.get('retry-after')]).toEqual([429, '10']);
    expect((await get('/vcek/v1/Milan/cert_chain', limitedUrl)).status).toBe(200);
    time += 9_999;
    expect((await get(vcek, limitedUrl)).status).toBe(429);
    time += 1;
    expect((await get(vcek, limitedUrl)).status).toBe(200);
  });

  it('tells the roots’ fingerprints', async () => {
    const prints = JSON.parse((await get('/softcvm/fingerprints')).bytes.toString());
    expect(prints.Milan).toBe(await authority.fingerprint('Milan'));
  });
});

describe('a verifier that asks it', () => {
  it.each(['milan', 'genoa', 'turin'] as const)('gets what verifies a report of a %s', async (generation) => {
    const { report, options } = await evidenceOf(generation);
    const evidence = await fetchEvidence(parseReport(report), { url });
    const verdict = await verifyReport(report, {
      ...evidence,
      roots: options.roots,
      policy: { revocation: 'required' },
      at: NOW,
    });
    expect(verdict.failures).toEqual([]);
  });

  it('finds the generation of a report of version 2 by asking for each', async () => {
    const report = signedReport(milan, { version: 2, cpuidFamily: 0, cpuidModel: 0, cpuidStepping: 0 });
    const { certificates } = await fetchEvidence(parseReport(report), { url });
    expect(parseCertificate(certificates[0]!).product).toBe('Milan');
    const genoa = authority.chip('genoa');
    const older = signedReport(genoa, { version: 2, cpuidFamily: 0, cpuidModel: 0, cpuidStepping: 0 });
    const found = await fetchEvidence(parseReport(older), { url });
    expect(parseCertificate(found.certificates[0]!).product).toBe('Genoa');
  });

  it('hears of 404, 429 and no answer at all', async () => {
    const report = parseReport(signedReport(milan));
    const error = async (): Promise<KdsError> => fetchEvidence(report, { url }).catch((one) => one);
    server.answer('404');
    expect(await error()).toMatchObject({ name: 'KdsError', status: 404 });
    server.answer('429', undefined, 7);
    expect(await error()).toMatchObject({
      status: 429,
      retryAfter: 7,
      message: expect.stringContaining('wait 7 s'),
    });
    server.answer('down');
    expect(await error()).toMatchObject({ status: undefined, message: expect.stringContaining('no answer') });
    server.answer('normal');
  });

  it('does not ask for what cannot be', async () => {
    const ask = (fields: Parameters<typeof signedReport>[1]) =>
      fetchEvidence(parseReport(signedReport(milan, fields)), { url });
    await expect(ask({ chipId: new Uint8Array(64) })).rejects.toThrow('report.chip_id: got zeros (masked)');
    await expect(ask({ keyInfo: 7 << 2 })).rejects.toThrow('report.signing_key: got none');
  });
});
