/**
 * A key distribution server with the URLs of AMD's (AMD 57230): chains, revocation lists, and a certificate per chip and TCB. It answers 404, 429
 * or not at all on request, for tests of what a verifier does then. Left out: TLS, and the authentication of providers who ask for a VLEK (nobody
 * outside has seen AMD's).
 *
 * Besides AMD's: `POST /softcvm/answer` with JSON `{"answer": "404" | "429" | "down" | "normal", "count": n, "retryAfter": seconds}` says how the next n
 * requests (all, without a count) are answered; `GET /softcvm/fingerprints` tells the roots.
 */
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { generationOf, hwidBytes, PRODUCTS, type Product } from '../abi/amd-certificate.ts';
import { SPL_PARAMETER } from '../abi/kds-url.ts';
import { writePem } from '../abi/pem.ts';
import { encodeTcb, type TcbVersion, tcbComponents } from '../abi/tcb-version.ts';
import type { Authority } from './authority.ts';

export type KdsAnswer = 'normal' | '404' | '429' | 'down';

export interface KdsOptions {
  /** 0, the default: any that is free. */
  readonly port?: number;
  /** Default 127.0.0.1. */
  readonly host?: string;
  /** Seconds between two VCEKs or VLEKs for one client; sooner is 429. AMD's wants some 10 s. Default 0: no limit. */
  readonly secondsPerKey?: number;
  /** Milliseconds that count for that limit; the platform's clock by default. */
  readonly now?: () => number;
  /** Hears of each request. */
  readonly onRequest?: (method: string, url: string, status: number) => void;
}

/** A status that is no 200, and why. */
class Refusal extends Error {
  readonly status: number;
  readonly retryAfter: number | undefined;
  constructor(status: number, message: string, retryAfter?: number) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

interface Body {
  readonly type: string;
  readonly bytes: Uint8Array | string;
}

const PEM = 'application/x-pem-file';
const DER = 'application/octet-stream';
const BODY_LIMIT = 4096;

export class KeyServer {
  readonly #authority: Authority;
  readonly #options: KdsOptions;
  readonly #server: Server;
  readonly #lastKey = new Map<string, number>();
  #answer: KdsAnswer = 'normal';
  #left = 0;
  #retryAfter = 10;

  constructor(authority: Authority, options: KdsOptions = {}) {
    this.#authority = authority;
    this.#options = options;
    this.#server = createServer((request, response) => void this.#serve(request, response));
  }

  /** Answers from now on; returns the base of its URLs. */
  listen(): Promise<string> {
    const { port = 0, host = '127.0.0.1' } = this.#options;
    return new Promise((resolve, reject) => {
      this.#server.once('error', reject);
      this.#server.listen(port, host, () => {
        const { port: actual } = this.#server.address() as AddressInfo;
        resolve(`http://${host.includes(':') ? `[${host}]` : host}:${actual}`);
      });
    });
  }

  /** How the next `count` requests are answered; all, without a count. */
  answer(answer: KdsAnswer, count = Number.POSITIVE_INFINITY, retryAfter = 10): void {
    this.#answer = answer;
    this.#left = count;
    this.#retryAfter = retryAfter;
  }

  /** Ends all connections. */
  close(): Promise<void> {
    this.#server.closeAllConnections();
    return new Promise((resolve) => this.#server.close(() => resolve()));
  }

  async #serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const { method = '', url = '' } = request;
    let status = 200;
    try {
      const { type, bytes } = await this.#respond(request);
      response
        .writeHead(200, { 'content-type': type, 'content-length': Buffer.byteLength(bytes) })
        .end(bytes);
    } catch (error) {
      if (error === DOWN) {
        status = 0;
        request.socket.destroy();
      } else {
        const { status: refused, retryAfter } =
          error instanceof Refusal ? error : { status: 500, retryAfter: undefined };
        status = refused;
        const headers = retryAfter === undefined ? {} : { 'retry-after': String(retryAfter) };
        response
          .writeHead(status, { 'content-type': 'text/plain', ...headers })
          .end(`${(error as Error).message}\n`);
      }
    }
    this.#options.onRequest?.(method, url, status);
  }

  async #respond(request: IncomingMessage): Promise<Body> {
    const url = new URL(request.url ?? '/', 'http://kds');
    if (url.pathname === '/softcvm/answer' && request.method === 'POST')
      return this.#control(await bodyOf(request));
    if (request.method !== 'GET' && request.method !== 'HEAD') throw new Refusal(405, 'want GET');
    if (url.pathname === '/softcvm/fingerprints') return this.#fingerprints();
    this.#interfere();
    const [, endpoint, version, productName, item, ...rest] = url.pathname.split('/');
    const product = PRODUCTS.find((one) => one === productName);
    const isKnown = (endpoint === 'vcek' || endpoint === 'vlek') && version === 'v1' && rest.length === 0;
    if (!isKnown || product === undefined || item === undefined)
      throw new Refusal(404, `${url.pathname}: not found`);
    if (item === 'cert_chain') return this.#chain(endpoint, product);
    if (item === 'crl') return { type: DER, bytes: await this.#authority.crl(product) };
    const tcb = tcbOf(product, url.searchParams);
    if (endpoint === 'vlek') {
      if (item !== 'cert') throw new Refusal(404, `${url.pathname}: not found`);
      this.#limit(request);
      return { type: DER, bytes: await this.#authority.vlek(product, tcb) };
    }
    return this.#vcek(request, product, item, tcb);
  }

  async #vcek(request: IncomingMessage, product: Product, item: string, tcb: bigint): Promise<Body> {
    const digits = 2 * hwidBytes(product);
    if (!new RegExp(`^[0-9a-fA-F]{${digits}}$`).test(item)) {
      throw new Refusal(400, `hwid: got ${item.length} characters, want ${digits} hex digits`);
    }
    const chip = this.#authority.findChip(product, Buffer.from(item, 'hex'));
    if (chip === undefined) throw new Refusal(404, `hwid: no ${product} has it`);
    this.#limit(request);
    return { type: DER, bytes: await this.#authority.vcek(chip, tcb) };
  }

  async #chain(endpoint: 'vcek' | 'vlek', product: Product): Promise<Body> {
    const { intermediate, ark } = await this.#authority.chain(endpoint, product);
    return { type: PEM, bytes: writePem('CERTIFICATE', intermediate) + writePem('CERTIFICATE', ark) };
  }

  async #fingerprints(): Promise<Body> {
    const prints = await Promise.all(
      PRODUCTS.map(async (product) => [product, await this.#authority.fingerprint(product)]),
    );
    return { type: 'application/json', bytes: JSON.stringify(Object.fromEntries(prints)) };
  }

  #interfere(): void {
    const answer = this.#answer;
    if (answer === 'normal' || this.#left === 0) return;
    this.#left--;
    if (answer === 'down') throw DOWN;
    if (answer === '429') throw new Refusal(429, 'too many requests', this.#retryAfter);
    throw new Refusal(404, 'not found');
  }

  #limit({ socket: { remoteAddress = '' } }: IncomingMessage): void {
    const { secondsPerKey = 0, now = Date.now } = this.#options;
    const last = this.#lastKey.get(remoteAddress) ?? Number.NEGATIVE_INFINITY;
    const wait = last + secondsPerKey * 1000 - now();
    if (wait > 0) throw new Refusal(429, 'too many requests', Math.ceil(wait / 1000));
    this.#lastKey.set(remoteAddress, now());
  }

  #control(text: string): Body {
    let order: { answer?: unknown; count?: unknown; retryAfter?: unknown };
    try {
      order = JSON.parse(text);
    } catch {
      throw new Refusal(400, 'want JSON');
    }
    const { answer, count, retryAfter } = order;
    if (answer !== 'normal' && answer !== '404' && answer !== '429' && answer !== 'down') {
      throw new Refusal(400, `answer: got ${answer}, want "normal", "404", "429" or "down"`);
    }
    for (const [name, value] of Object.entries({ count, retryAfter })) {
      if (value !== undefined && !(Number.isInteger(value) && Number(value) >= 0)) {
        throw new Refusal(400, `${name}: got ${value}, want a whole number`);
      }
    }
    this.answer(answer, count as number | undefined, retryAfter as number | undefined);
    return { type: 'application/json', bytes: '{}' };
  }
}

/** Thrown to end the connection without an answer. */
const DOWN = new Error('down');

async function bodyOf(request: IncomingMessage): Promise<string> {
  let text = '';
  for await (const chunk of request) {
    text += chunk;
    if (text.length > BODY_LIMIT) throw new Refusal(413, `want at most ${BODY_LIMIT} characters`);
  }
  return text;
}

/** TCB_VERSION of a query, which must name every component of the generation. */
function tcbOf(product: Product, query: URLSearchParams): bigint {
  const generation = generationOf(product);
  const tcb: Partial<Record<keyof TcbVersion, number>> = {};
  for (const component of tcbComponents(generation)) {
    const text = query.get(SPL_PARAMETER[component]);
    if (text === null || !/^\d{1,3}$/.test(text) || Number(text) > 255) {
      throw new Refusal(400, `${SPL_PARAMETER[component]}: got ${text ?? 'nothing'}, want 0 to 255`);
    }
    tcb[component] = Number(text);
  }
  return encodeTcb(generation, tcb as TcbVersion);
}
