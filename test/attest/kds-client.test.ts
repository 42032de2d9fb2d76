/** What a key distribution server may answer: each wrong answer is an error that names its URL, at its time. */
import { createServer, type RequestListener, type Server } from 'node:http';
import { type AddressInfo, createServer as createTcpServer } from 'node:net';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { afterAll, afterEach, describe, expect, it, vi } from 'vitest';
import { fetchEvidence, KdsError, parseReport, verifyReport } from '../../src/attest/index.ts';
import { evidenceOf, NOW, signedReport } from './evidence.ts';

const { report: bytes, options, chip, authority } = await evidenceOf('milan');
const report = parseReport(bytes);
const [vcek, ask, ark] = options.certificates as [Uint8Array, Uint8Array, Uint8Array];
const crl = options.crls![0]!;
const pem = (der: Uint8Array): string =>
  `-----BEGIN CERTIFICATE-----\n${Buffer.from(der).toString('base64')}\n-----END CERTIFICATE-----\n`;

const rejections: unknown[] = [];
const onRejection = (reason: unknown): void => void rejections.push(reason);
process.on('unhandledRejection', onRejection);
const servers: Server[] = [];
afterEach(() => {
  for (const server of servers.splice(0)) {
    server.closeAllConnections();
    server.close();
  }
});
afterAll(() => {
  process.off('unhandledRejection', onRejection);
  expect(rejections).toEqual([]);
});

async function serve(listener: RequestListener): Promise<string> {
  const server = createServer(listener);
  servers.push(server);
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
}

type Item = 'vcek' | 'cert_chain' | 'crl';
const itemOf = (url: string): Item =>
  url.endsWith('/cert_chain') ? 'cert_chain' : url.endsWith('/crl') ? 'crl' : 'vcek';
const RIGHT: Readonly<Record<Item, Uint8Array | string>> = {
  vcek,
  cert_chain: pem(ask) + pem(ark),
  crl,
};

/** A server that answers as AMD's does, but for one item. */
const wrongIn = (item: Item, listener: RequestListener): Promise<string> =>
  serve((request, response) => {
    const asked = itemOf(request.url ?? '');
    if (asked === item) listener(request, response);
    else response.end(RIGHT[asked]);
  });

const errorOf = (url: string, timeoutMs = 20_000): Promise<KdsError> =>
  fetchEvidence(report, { url, timeoutMs }).then(
    () => expect.fail('got evidence'),
    (error) => error,
  );

const html = '<html>Please try again later</html>';
const answers: readonly (readonly [what: string, answer: RequestListener, message: string])[] = [
  ['nothing', (_request, response) => void response.end(), 'got nothing, want 1 to 1048576 bytes'],
  [
    'a page of HTML',
    (_request, response) => void response.setHeader('content-type', 'text/html').end(html),
    `got ${html.length} bytes of text/html, want certificates or a revocation list (answer.`,
  ],
  [
    'half of a certificate',
    (_request, response) => void response.end(vcek.subarray(0, 400)),
    'got 400 bytes of no content type, want certificates or a revocation list (answer.',
  ],
  [
    'more behind a certificate',
    (_request, response) => void response.end(Buffer.concat([vcek, Buffer.of(0)])),
    'got 1 bytes after its last field, want none)',
  ],
  [
    'half of a PEM file',
    (_request, response) => void response.end(pem(ask).slice(0, 300)),
    'got 1 BEGIN lines and 0 whole blocks',
  ],
  [
    'two megabytes',
    (_request, response) => void response.end(Buffer.alloc(2 << 20, 0x30)),
    'got more than 1048576 bytes, want 1 to 1048576 bytes',
  ],
  [
    'a mebibyte of zeros',
    (_request, response) => void response.end(Buffer.alloc(1 << 20)),
    'got 1048576 bytes of no content type, want certificates or a revocation list (answer.',
  ],
  ['400', (_request, response) => void response.writeHead(400).end(), 'got status 400, want 200'],
  ['404', (_request, response) => void response.writeHead(404).end(), 'got status 404, want 200'],
  [
    '429',
    (_request, response) => void response.writeHead(429, { 'retry-after': '7' }).end(),
    'got status 429, wait 7 s, want 200',
  ],
  [
    '429 until a date',
    (_request, response) =>
      void response.writeHead(429, { 'retry-after': 'Wed, 21 Oct 2026 07:28:00 GMT' }).end(),
    'got status 429, want 200',
  ],
  ['500', (_request, response) => void response.writeHead(500).end(html), 'got status 500, want 200'],
  ['204', (_request, response) => void response.writeHead(204).end(), 'got status 204, want 200'],
  [
    'a redirect',
    (_request, response) => void response.writeHead(302, { location: '/elsewhere' }).end(),
    'no answer (unexpected redirect)',
  ],
  ['the end of the connection', (request) => void request.socket.destroy(), 'no answer (other side closed)'],
  ['a reset', (request) => void request.socket.resetAndDestroy(), 'no answer (read ECONNRESET)'],
  [
    'the end within an answer',
    (request, response) => {
      response.writeHead(200, { 'content-length': 1000 });
      response.write(vcek.subarray(0, 100), () => request.socket.destroy());
    },
    'got a part of an answer (',
  ],
];

describe.each(['vcek', 'cert_chain', 'crl'] as const)('a server that sends for %s', (item) => {
  it.each(answers)('%s', async (_what, answer, message) => {
    const url = await wrongIn(item, answer);
    const error = await errorOf(url);
    expect(error).toBeInstanceOf(KdsError);
    expect(error.message.startsWith(`${url}/vcek/v1/Milan/`)).toBe(true);
    expect(itemOf(error.message.slice(0, error.message.indexOf(': ')))).toBe(item);
    expect(error.message).toContain(message);
  });
});

describe('a server', () => {
  it('that never answers, or drips, is left at the time that was given', async () => {
    const silent = await errorOf(await serve(() => {}), 50);
    expect(silent.message).toContain('no answer (The operation was aborted due to timeout)');
    const dripping = await serve((_request, response) => {
      const timer = setInterval(() => response.write('0'), 5);
      response.on('close', () => clearInterval(timer));
    });
    const dripped = await errorOf(dripping, 100);
    expect(dripped.message).toContain('got a part of an answer (The operation was aborted due to timeout)');
  });

  it('that never answers has no connection any more at that time', async () => {
    let open = 0;
    const url = await serve((request) => {
      open++;
      request.socket.on('close', () => open--);
    });
    await errorOf(url, 50);
    await expect.poll(() => open).toBe(0);
  });

  it('that has answered, rightly or not, is waited for by no timer', async () => {
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
    try {
      const fetch = async (address: string | URL | Request): Promise<Response> =>
        new Response(Buffer.from(RIGHT[itemOf(String(address))]));
      await fetchEvidence(report, { fetch });
      expect(vi.getTimerCount()).toBe(0);
      const fail = async (): Promise<Response> => new Response(null, { status: 500 });
      await expect(fetchEvidence(report, { fetch: fail })).rejects.toThrow('got status 500');
      expect(vi.getTimerCount()).toBe(0);
    } finally {
      vi.useRealTimers();
    }
  });

  it.each(['cert_chain', 'crl'] as const)(
    'that fails for %s is waited for with nothing else',
    async (wrong) => {
      let open = 0;
      const begun: (() => void)[] = [];
      const url = await serve((request, response) => {
        const asked = itemOf(request.url ?? '');
        if (asked === 'vcek') response.end(vcek);
        else if (asked === wrong) begun.push(() => void response.writeHead(500).end());
        else {
          open++;
          begun.push(() => {});
          response.on('close', () => open--);
        }
        if (begun.length === 2) for (const answer of begun) answer();
      });
      expect((await errorOf(url, 600_000)).message).toContain(`/${wrong}: got status 500`);
      await expect.poll(() => open).toBe(0);
    },
  );

  it('that drips is left at that time whatever the platform forgets meanwhile', async () => {
    setFlagsFromString('--expose-gc');
    const collect: () => void = runInNewContext('gc');
    let open = 0;
    const dripping = await serve((_request, response) => {
      open++;
      const timer = setInterval(() => response.write('0'), 5);
      response.on('close', () => {
        open--;
        clearInterval(timer);
      });
    });
    const collecting = setInterval(collect, 20);
    const error = await errorOf(dripping, 300).finally(() => clearInterval(collecting));
    expect(error.message).toContain('got a part of an answer (');
    await expect.poll(() => open).toBe(0);
  });

  it('that drips a page of error is left at once', async () => {
    let left = 0;
    const dripping = await serve((_request, response) => {
      response.writeHead(503);
      const timer = setInterval(() => response.write('0'), 5);
      response.on('close', () => {
        left++;
        clearInterval(timer);
      });
    });
    expect((await errorOf(dripping)).message).toContain('got status 503, want 200');
    await expect.poll(() => left).toBe(1);
  });

  it.each([-1, 1.5, Number.NaN, 2 ** 31, '1'])('is not waited for %s milliseconds', async (timeoutMs) => {
    const options = { timeoutMs: timeoutMs as number, url: 'http://127.0.0.1:1' };
    await expect(fetchEvidence(report, options)).rejects.toThrow(
      new RangeError(`timeoutMs: got ${timeoutMs}, want an integer from 0 to 2147483647`),
    );
  });

  it('is asked with no option that is none', async () => {
    await expect(fetchEvidence(report, { timeout: 1 } as object)).rejects.toThrow(
      new RangeError('options.timeout: got a field that is none, want url, product, timeoutMs, fetch'),
    );
  });

  it('that sends without an end is left once it has sent too much', async () => {
    let sent = 0;
    const endless = await serve((_request, response) => {
      const more = (): void => {
        while (!response.destroyed && response.write(Buffer.alloc(65_536))) sent += 65_536;
      };
      response.on('drain', more);
      more();
    });
    expect((await errorOf(endless)).message).toContain('got more than 1048576 bytes');
    expect(sent).toBeLessThan(64 << 20);
  });

  it('that sends a mebibyte and then a byte has sent too much', async () => {
    const parts = [Buffer.alloc(1 << 20), Buffer.alloc(1)];
    const body = new ReadableStream({
      pull(controller) {
        const part = parts.shift();
        if (part === undefined) controller.close();
        else controller.enqueue(part);
      },
    });
    await expect(fetchEvidence(report, { fetch: async () => new Response(body) })).rejects.toThrow(
      'got more than 1048576 bytes',
    );
  });

  it('is not asked for a key that it cannot have', async () => {
    const asked: string[] = [];
    const fetch = async (address: string | URL | Request): Promise<Response> => {
      asked.push(new URL(String(address)).pathname);
      return new Response(Buffer.from(RIGHT[itemOf(String(address))]));
    };
    const ask = (fields: Parameters<typeof signedReport>[1]) =>
      fetchEvidence(parseReport(signedReport(chip, fields)), { fetch });
    const masked = { chipId: new Uint8Array(64) };
    for (const key of [2, 3, 7]) {
      await expect(ask({ keyInfo: key << 2 })).rejects.toThrow(
        `report.signing_key: got ${key === 7 ? 'none' : `reserved ${key}`}, want VCEK or VLEK`,
      );
    }
    await expect(ask(masked)).rejects.toThrow('report.chip_id: got zeros (masked)');
    expect(asked).toEqual([]);
    await ask({ ...masked, keyInfo: 1 << 2 });
    expect(asked).toEqual(['/vlek/v1/Milan/cert', '/vlek/v1/Milan/cert_chain', '/vlek/v1/Milan/crl']);
  });

  it('that speaks no HTTP gives no answer', async () => {
    const server = createTcpServer((socket) => {
      socket.on('error', () => {});
      socket.end('SSH-2.0-OpenSSH_9.2\r\n');
    });
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    const error = await errorOf(`http://127.0.0.1:${(server.address() as AddressInfo).port}`);
    expect(error.message).toContain('no answer (');
    server.close();
  });

  it('that nobody runs gives no answer', async () => {
    const url = await serve(() => {});
    const [server] = servers.splice(0);
    await new Promise((resolve) => server!.close(resolve));
    expect(await errorOf(url)).toMatchObject({
      message: expect.stringMatching(/^http:.*: no answer \(connect ECONNREFUSED 127/),
      status: undefined,
    });
  });

  it.each([
    ['its cause', new Error('connect ETIMEDOUT'), 'no answer (connect ETIMEDOUT)'],
    ['itself, where the cause has no words', new AggregateError([]), 'no answer (fetch failed)'],
    ['itself, where there is no cause', undefined, 'no answer (fetch failed)'],
  ])('that is not reached is told of in the words of %s', async (_, cause, words) => {
    const fetch = () => Promise.reject(new TypeError('fetch failed', { cause }));
    await expect(fetchEvidence(report, { fetch })).rejects.toThrow(words);
  });

  it.each(['http://127.0.0.1:99999', 'ftp://127.0.0.1', 'kdsintf.amd.com', ''])(
    'at %j is refused before anything is asked',
    async (url) => {
      await expect(fetchEvidence(report, { url })).rejects.toThrow(
        new RangeError(`url: got ${url}, want an address such as https://kdsintf.amd.com`),
      );
    },
  );

  it('is AMD’s unless one is named, and a slash at its end does not count', async () => {
    const asked: string[] = [];
    const fetch = async (address: string | URL | Request): Promise<Response> => {
      asked.push(String(address));
      return new Response(Buffer.from(RIGHT[itemOf(String(address))]));
    };
    expect(await fetchEvidence(report, { fetch })).toEqual({
      certificates: [vcek, new Uint8Array(Buffer.from(RIGHT.cert_chain as string))],
      crls: [crl],
    });
    await fetchEvidence(report, { fetch, url: 'https://kds.test/amd/' });
    const id = Buffer.from(chip.chipId).toString('hex');
    const paths = [
      `/vcek/v1/Milan/${id}?blSPL=04&teeSPL=00&snpSPL=24&ucodeSPL=219`,
      '/vcek/v1/Milan/cert_chain',
      '/vcek/v1/Milan/crl',
    ];
    expect(asked).toEqual([
      ...paths.map((path) => `https://kdsintf.amd.com${path}`),
      ...paths.map((path) => `https://kds.test/amd${path}`),
    ]);
  });

  it('that has a report’s chip for no generation is asked for each, unless the caller knows it', async () => {
    const older = parseReport(
      signedReport(chip, { version: 2, cpuidFamily: 0, cpuidModel: 0, cpuidStepping: 0 }),
    );
    const asked: string[] = [];
    const url = await serve((request, response) => {
      asked.push(request.url!.split('/')[3]!);
      response.writeHead(404).end();
    });
    await expect(fetchEvidence(older, { url })).rejects.toMatchObject({
      name: 'KdsError',
      status: 404,
      message: `${url}/vcek: got status 404 for Milan and Genoa, want 200; a report of version 2 does not say its product`,
    });
    expect(asked).toEqual(['Milan', 'Genoa']);
    const down = await serve((_request, response) => void response.writeHead(500).end());
    await expect(fetchEvidence(older, { url: down })).rejects.toThrow(`${down}/vcek/v1/Milan/`);
    for (const product of ['Milan', 'Genoa'] as const)
      await expect(fetchEvidence(older, { url, product })).rejects.toThrow(`${url}/vcek/v1/${product}/`);
  });

  it('that sends another chip’s certificate, or another root’s chain, is found out by the verdict', async () => {
    const judged = async (url: string): Promise<string[]> => {
      const evidence = await fetchEvidence(report, { url });
      const { failures } = await verifyReport(bytes, { ...evidence, roots: [ark], at: NOW });
      return failures.map(({ name }) => name);
    };
    const other = await evidenceOf('milan', {}, 8);
    const [otherVcek] = other.options.certificates as [Uint8Array];
    expect(await judged(await wrongIn('vcek', (_request, response) => void response.end(otherVcek)))).toEqual(
      expect.arrayContaining(['report.signature', 'VCEK.hwid']),
    );
    const { intermediate, ark: otherArk } = await authority.chain('vcek', 'Genoa');
    const chain = pem(intermediate) + pem(otherArk);
    expect(
      await judged(await wrongIn('cert_chain', (_request, response) => void response.end(chain))),
    ).toContain('ARK.trusted');
    const genoa = await authority.crl('Genoa');
    expect(await judged(await wrongIn('crl', (_request, response) => void response.end(genoa)))).toEqual([]);
  });
});
