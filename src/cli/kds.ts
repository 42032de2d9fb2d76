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

const ANSWERS: readonly KdsAnswer[] = ['normal', '404', '429', 'down'];

export async function kds(options: KdsCommandOptions): Promise<number> {
  const authority = openAuthority(options);
  const port = parseInteger(options.port, '--port', 0, 65535);
  const secondsPerKey = parseNumber(options.secondsPerKey ?? '0', '--seconds-per-key', 0, 3600);
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
  if (options.answer !== undefined) {
    const answer = parseChoice(options.answer, '--answer', ANSWERS);
    server.answer(
      answer,
      options.count === undefined ? undefined : parseInteger(options.count, '--count', 0, 2 ** 32),
    );
  }
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
