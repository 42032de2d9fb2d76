/** `softcvm kds`: a key distribution server with the URLs of AMD's, for the chips of an authority. Runs until a signal. */
import { once } from 'node:events';
import { type KdsAnswer, KeyServer } from '../authority/kds.ts';
import { type AuthorityOptions, openAuthority } from './authority.ts';
import { InputError, parseChoice, parseInteger, parseNumber } from './size.ts';

/** Options as commander has them. */
export interface KdsCommandOptions extends AuthorityOptions {
  readonly port: string;
  readonly host: string;
  readonly answer?: string;
  readonly count?: string;
  readonly secondsPerKey?: string;
  readonly quiet?: boolean;
}

const ANSWERS = ['normal', '404', '429', 'down'] as const satisfies readonly KdsAnswer[];

export async function kds(options: KdsCommandOptions): Promise<number> {
  const answer = parseChoice(options.answer ?? ANSWERS[0], '--answer', ANSWERS);
  if (options.count !== undefined && answer === 'normal')
    throw new InputError('--count: got it with --answer normal, want 404, 429 or down');
  const count = options.count === undefined ? undefined : parseInteger(options.count, '--count', 0, 2 ** 32);
  // An empty one would be all addresses.
  if (options.host === '') throw new InputError('--host: got "", want an address');
  const port = parseInteger(options.port, '--port', 0, 65535);
  const secondsPerKey = parseNumber(options.secondsPerKey ?? '0', '--seconds-per-key', 0, 3600);
  const authority = openAuthority(options);
  const server = new KeyServer(authority, {
    port,
    host: options.host,
    secondsPerKey,
    ...(options.quiet
      ? {}
      : {
          onRequest: (method: string, url: string, status: number) =>
            console.error(`${method} ${url} ${status === 0 ? 'no answer' : status}`),
        }),
  });
  server.answer(answer, count);
  const chips = authority.chips();
  const base = await server.listen().catch((error: Error) => {
    throw new InputError(`--host, --port: got ${options.host}, ${options.port}: ${error.message}`);
  });
  console.log(base);
  for (const chip of chips) {
    const id = Buffer.from(chip.fuses.id).toString('hex');
    console.error(`${chip.personality.product} ${id}`);
  }
  await Promise.race([once(process, 'SIGINT'), once(process, 'SIGTERM')]);
  await server.close();
  return 0;
}
